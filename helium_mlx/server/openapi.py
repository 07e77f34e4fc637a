"""`/openapi.json`: what the server answers, in OpenAPI 3.1, from the tables that it checks requests by."""

from collections.abc import Mapping

from helium_mlx.server.parameters import COMPLETION, DETOKENIZE, SUGGESTION, TOKENIZE
from helium_mlx.server.schema import Parameter
from helium_mlx.version import __version__

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_WHOLE = {"type": "integer", "minimum": 0}
_USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {
        "prompt_tokens": _WHOLE,
        "completion_tokens": _WHOLE,
        "total_tokens": _WHOLE,
        "prompt_tokens_details": {"type": "object", "properties": {"cached_tokens": _WHOLE}},
    },
}
_LOGPROBS = {
    "type": ["object", "null"],
    "properties": {
        "tokens": {"type": "array", "items": {"type": "string"}},
        "token_logprobs": {"type": "array", "items": {"type": ["number", "null"]}},
        "top_logprobs": {"type": ["array", "null"], "items": {"type": ["object", "null"]}},
        "text_offset": {"type": "array", "items": _WHOLE},
        "token_ids": {"type": "array", "items": _WHOLE},
        "top_token_ids": {"type": "array", "items": {"type": ["object", "null"]}},
    },
}
_COMPLETION = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "text_completion"},
        "created": _WHOLE,
        "model": {"type": "string"},
        "choices": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["text", "index", "logprobs", "finish_reason"],
                "properties": {
                    "text": {"type": "string"},
                    "index": _WHOLE,
                    "logprobs": _LOGPROBS,
                    "finish_reason": {"enum": ["stop", "length"]},
                },
            },
        },
        "usage": _USAGE,
    },
}
_SUGGESTIONS = {
    "type": "object",
    "required": ["object", "suggestions", "usage", "ended"],
    "properties": {
        "object": {"const": "suggestions"},
        "suggestions": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["text", "probability"],
                "properties": {"text": {"type": "string"}, "probability": {"type": "number"}, "index": _WHOLE},
            },
        },
        "usage": _USAGE,
        "ended": {"type": "string"},
    },
}
_TOKENS = {
    "type": "object",
    "required": ["tokens", "texts", "count", "max_model_len"],
    "properties": {
        "tokens": {"type": "array", "items": _WHOLE},
        "texts": {"type": "array", "items": {"type": "string"}},
        "count": _WHOLE,
        "max_model_len": _WHOLE,
    },
}
_TEXT = {"type": "object", "required": ["prompt"], "properties": {"prompt": {"type": "string"}}}


def document() -> dict[str, object]:
    """Return the document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "helium_mlx",
            "version": __version__,
            "description": "Completions of a base language model. Errors are of one form; a key may be asked for.",
        },
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
        "paths": {
            "/v1/completions": _post("Complete prompts", COMPLETION, _COMPLETION, streams=True),
            "/v1/suggestions": _post("Suggest the next words", SUGGESTION, _SUGGESTIONS, streams=True),
            "/tokenize": _post("Tokens of a text", TOKENIZE, _TOKENS),
            "/detokenize": _post("Text of tokens", DETOKENIZE, _TEXT),
            "/tokenizer_info": _get("Special tokens"),
            "/v1/models": _get("The model"),
            "/health": _get("Whether the server answers"),
            "/metrics": _get("Counters, for Prometheus", "text/plain"),
            "/openapi.json": _get("This document"),
        },
    }


def _post(
    summary: str, parameters: Mapping[str, Parameter], answer: Mapping[str, object], *, streams: bool = False
) -> dict[str, object]:
    schema = {
        "type": "object",
        "properties": {name: parameter.document() for name, parameter in parameters.items()},
        "additionalProperties": False,
    }
    content: dict[str, object] = {"application/json": {"schema": dict(answer)}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {"200": {"description": summary, "content": content}, "default": _errors()},
        }
    }


def _get(summary: str, kind: str = "application/json") -> dict[str, object]:
    return {
        "get": {
            "summary": summary,
            "responses": {"200": {"description": summary, "content": {kind: {}}}, "default": _errors()},
        }
    }


def _errors() -> dict[str, object]:
    return {"description": "An error", "content": {"application/json": {"schema": _ERROR}}}
