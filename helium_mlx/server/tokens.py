"""`/tokenize`, `/detokenize` and `/tokenizer_info`: what clients that count or give tokens ask."""

from typing import cast

from helium_mlx.engine.engine import HeliumEngine
from helium_mlx.errors import HeliumError
from helium_mlx.json_writer import to_json
from helium_mlx.server.errors import as_api_error
from helium_mlx.server.parameters import DETOKENIZE, TOKENIZE
from helium_mlx.server.schema import read


def tokenize(engine: HeliumEngine, body: bytes) -> str:
    """Return the ids of a text, and the text of each: joined, they are the text as the tokenizer decodes it."""
    given = read(body, TOKENIZE, {})
    tokenizer = engine.tokenizer
    try:
        tokens = tokenizer.encode(
            cast(str, given["prompt"]), add_special_tokens=cast(bool, given["add_special_tokens"])
        )
    except HeliumError as error:
        raise as_api_error(error) from None
    detokenizer = tokenizer.detokenizer()
    texts = [detokenizer.add_token(token) for token in tokens]
    if texts:
        texts[-1] += detokenizer.finish()
    context = engine.config.max_position_embeddings
    return to_json({"count": len(tokens), "max_model_len": context, "tokens": tokens, "texts": texts})


def detokenize(engine: HeliumEngine, body: bytes) -> str:
    """Return the text of token ids."""
    given = read(body, DETOKENIZE, {})
    try:
        return to_json({"prompt": engine.tokenizer.decode(cast("list[int]", given["tokens"]))})
    except HeliumError as error:
        raise as_api_error(error) from None


def tokenizer_info(engine: HeliumEngine) -> str:
    """Return the names of the special tokens; there is no chat template, since the model is a base model."""
    tokenizer = engine.tokenizer
    return to_json(
        {
            "tokenizer_class": type(tokenizer).__name__,
            "vocab_size": tokenizer.vocab_size,
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "pad_token": tokenizer.pad_token,
            "chat_template": None,
            "model_max_length": engine.config.max_position_embeddings,
        }
    )
