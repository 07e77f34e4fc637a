"""What a prompt may be, its tokens, and how many tokens the context has room for after it."""

from collections.abc import Sequence

import mlx.core as mx

from helium_mlx.errors import ContextOverflowError, GenerationError
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.option_values import plain, token_ids
from helium_mlx.process import require_not_forked
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Prompt = str | Sequence[int]


def require_generator(model: object, tokenizer: object) -> None:
    """Raise GenerationError unless these are what `load` returns, in that order, and HeliumError after a fork."""
    require_not_forked("generate there")
    for name, value, kind in (("model", model, HeliumForCausalLM), ("tokenizer", tokenizer, HeliumTokenizer)):
        if not isinstance(value, kind):
            raise GenerationError(
                f"{name} is {type(value).__name__}; it must be a {kind.__name__}, such as helium_mlx.load returns"
            )


def holds_ids(prompt: Sequence[object]) -> bool:
    """Return whether a sequence that is not empty is a prompt's token ids, rather than several prompts."""
    return isinstance(plain(prompt[0]), int)


def tokens_of_prompt(
    model: HeliumForCausalLM, tokenizer: HeliumTokenizer, prompt: str | Sequence[int] | mx.array
) -> list[int]:
    """Return the ids of a prompt. Raises GenerationError for an empty one and for what is not an id of the model's."""
    if isinstance(prompt, (bytes, bytearray)):
        raise GenerationError("prompt is bytes; give text (decode it) or a list of token ids")
    # The tokenizer may have ids that the model has not.
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    tokens = token_ids("prompt", ids, model.config.vocab_size)
    if not tokens:
        raise GenerationError("prompt has no tokens; give text, or at least the BOS id")
    return tokens


def room_after(model: HeliumForCausalLM, held: int, prompt: int) -> int:
    """Return how many tokens may follow the prompt: what there is room for, and at least one.

    The last token is not run, so a prompt that fills the context is followed by one.
    """
    context = model.config.max_position_embeddings
    room = context - held - prompt
    if room < 0:
        before = f" after {held} in the cache" if held else ""
        raise ContextOverflowError(
            f"the prompt has {prompt} tokens{before}; at most {context - held} fit, since the model's context is "
            f"{context}: shorten the prompt, or let the cache forget with a max_kv_size of at most {context}"
        )
    return max(room, 1)
