"""What the requests of the server may hold: OpenAI's parameters of legacy completions, and ours beside them."""

from collections.abc import Mapping

from helium_mlx.server.schema import Parameter, Schema

MAX_LOGPROBS = 20
MAX_CHOICES = 128

_TEXT: Schema = {"type": "string"}
_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}}


def _whole(least: int, most: int | None = None) -> Schema:
    return {"type": "integer", "minimum": least} | ({} if most is None else {"maximum": most})


def _number(least: float, most: float) -> Schema:
    return {"type": "number", "minimum": least, "maximum": most}


# Taken, since they change nothing that is generated.
_WITHOUT_EFFECT: Mapping[str, Parameter] = {
    "model": Parameter(_TEXT, "Any name: the server has one model."),
    "user": Parameter(_TEXT, "Without effect."),
    "metadata": Parameter({"type": "object"}, "Without effect."),
    "store": Parameter({"type": "boolean"}, "Without effect: nothing is stored."),
    "service_tier": Parameter(_TEXT, "Without effect."),
}

COMPLETION: Mapping[str, Parameter] = {
    "prompt": Parameter(
        {"anyOf": [
            _TEXT, {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": MAX_CHOICES}, {**_IDS, "minItems": 1},
            {"type": "array", "items": {**_IDS, "minItems": 1}, "minItems": 1, "maxItems": MAX_CHOICES},
        ]},
        "Text, token ids, or several of either. Text gets one BOS in front; ids are taken as they are.",
        default="",
    ),
    "max_tokens": Parameter(_whole(0), "The most tokens of each completion; 0 with echo only scores.", default=16),
    "temperature": Parameter(_number(0, 2), "0 takes the most probable token.", default=1.0),
    "top_p": Parameter(_number(0, 1), "Draw from the most probable tokens that have this share.", default=1.0),
    "n": Parameter(_whole(1, MAX_CHOICES), "Completions of each prompt.", default=1),
    "best_of": Parameter(
        _whole(1, MAX_CHOICES), "Generate so many, return the n of the highest log-probability a token."
    ),
    "stop": Parameter({"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}, "Text before which completions end."),
    "seed": Parameter(_whole(0, 2**63 - 1), "The same request with the same seed has the same completion."),
    "logit_bias": Parameter(
        {"type": "object", "additionalProperties": _number(-100, 100)}, "Token id to what is added to its logit."
    ),
    "presence_penalty": Parameter(_number(-2, 2), "Taken from the logits of tokens that came already.", default=0.0),
    "frequency_penalty": Parameter(_number(-2, 2), "The same, for each time that they came.", default=0.0),
    "logprobs": Parameter(_whole(0, MAX_LOGPROBS), "Log-probabilities, with so many alternatives a token."),
    "echo": Parameter({"type": "boolean"}, "Return the prompt too, with logprobs those of its tokens.", default=False),
    "stream": Parameter({"type": "boolean"}, "Send text as it comes, as server-sent events.", default=False),
    "stream_options": Parameter(
        {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
        "include_usage: a last event with the usage.",
    ),
    "top_k": Parameter(_whole(0), "Draw from so many tokens; 0 for all.", default=0),
    "min_p": Parameter(_number(0, 1), "Leave out what is less probable than this share of the likeliest.", default=0.0),
    "repetition_penalty": Parameter(_number(0.001, 1000), "Divides the logits of tokens that came.", default=1.0),
    "heal": Parameter({"type": "boolean"}, "Go on inside a word that the prompt ends in.", default=False),
    "time_budget_ms": Parameter(_whole(1), "End after so many milliseconds, with what there is."),
    "ignore_eos": Parameter({"type": "boolean"}, "Go on after the end of text.", default=False),
    "prompt_lookup": Parameter(_whole(0, 64), "Guess so many tokens from the text before; 0 guesses none.", default=0),
    "kv_bits": Parameter(_whole(2, 8), "Keep keys and values in so many bits."),
    **_WITHOUT_EFFECT,
}  # fmt: skip

NOT_DONE_IN_COMPLETIONS: Mapping[str, str] = {
    "suffix": "Helium has no tokens for filling in; put all text into the prompt",
}

SUGGESTION: Mapping[str, Parameter] = {
    "prompt": Parameter(_TEXT, "The text before the cursor.", default=""),
    "max_words": Parameter(_whole(1, 64), "The most words of a suggestion.", default=8),
    "time_budget_ms": Parameter(_whole(1, 60_000), "Milliseconds in which it must be there.", default=300),
    "n": Parameter(_whole(1, 8), "How many, each beginning with another token.", default=1),
    "threshold": Parameter(_number(0, 1), "The least probability a token, geometric mean, of a suggestion."),
    "handle": Parameter(_TEXT, "Whose text it is; a newer request with the same handle ends the older."),
    "stream": Parameter({"type": "boolean"}, "Send words as they come.", default=False),
    "model": _WITHOUT_EFFECT["model"],
}

TOKENIZE: Mapping[str, Parameter] = {
    "prompt": Parameter(_TEXT, "The text.", default=""),
    "add_special_tokens": Parameter({"type": "boolean"}, "Put BOS in front.", default=True),
    "model": _WITHOUT_EFFECT["model"],
}

DETOKENIZE: Mapping[str, Parameter] = {
    "tokens": Parameter(_IDS, "Token ids.", default=[]),
    "model": _WITHOUT_EFFECT["model"],
}
