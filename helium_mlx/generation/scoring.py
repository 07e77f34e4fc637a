"""`score`: the log-probability of every token of a text, given those before it. Nothing is generated.

The text runs through the model in chunks with a cache, and the head over a few positions of a chunk at a time, so
that the logits of the whole text, 48,000 numbers a token in Helium, never exist together. Log-softmax is in float32,
whatever the model computes in. It does not batch texts and keeps no cache from one to the next.
"""

import itertools
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from helium_mlx.errors import ContextOverflowError, GenerationError, one_line
from helium_mlx.generation.completion import ranked
from helium_mlx.generation.prompts import require_generator
from helium_mlx.generation.sampling import token_logprobs
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.sound_logits import are_sound, require_sound
from helium_mlx.option_values import require_whole, token_ids
from helium_mlx.table import Table, short_repr
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

# 12 MB of float32 logits in Helium's vocabulary.
HEAD_POSITIONS = 64

# Tokens, and characters, that a text is shown by.
_BEGINNING = 40


@dataclass(frozen=True)
class Score:
    """The tokens of a text and their natural log-probabilities; those of the first, which nothing precedes, are None.

    `top_logprobs` holds, a token, the most probable ids of its position with their log-probabilities, best first, as
    many as were asked for; none for the first token. `texts`, the text that each token made certain, as in
    `stream_generate`: joined, they are the text as the tokenizer decodes it. `bytes`: UTF-8 bytes that were scored.
    """

    tokens: list[int]
    logprobs: list[float | None]
    top_logprobs: list[dict[int, float]]
    texts: list[str]
    bytes: int

    def __repr__(self) -> str:
        return short_repr(self, text=self._beginning, tokens=len(self.tokens), bytes=self.bytes, total=self.total)

    def _repr_html_(self) -> str:
        columns = [("tokens", ""), ("log-probability", "nats"), ("perplexity", "a token"), ("bits", "a byte")]
        perplexity = f"{self.perplexity:,.3f}" if len(self.tokens) > 1 else "-"
        beginning = one_line(self._beginning, _BEGINNING)
        row = [beginning, f"{len(self.tokens):,}", f"{self.total:,.3f}", perplexity, f"{self.bits_per_byte:.4f}"]
        return Table("text", columns, [row]).html()

    @property
    def _beginning(self) -> str:
        return "".join(self.texts[:_BEGINNING])

    @property
    def total(self) -> float:
        """The log-probability of the text: the sum over all tokens but the first."""
        return math.fsum(value for value in self.logprobs if value is not None)

    @property
    def perplexity(self) -> float:
        """e to the mean negative log-probability of a token; infinite where that overflows."""
        mean = -self.total / (len(self.tokens) - 1)
        return math.exp(mean) if mean < 709 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits to encode a byte of the text with; comparable between tokenizers. NaN for a text of no bytes."""
        return -self.total / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def offsets(self) -> list[int]:
        """Where the text of each token begins in the texts joined, in characters."""
        return list(itertools.accumulate(map(len, self.texts[:-1]), initial=0))


def score(
    model: HeliumForCausalLM,
    tokenizer: HeliumTokenizer,
    text: str | Sequence[int] | mx.array,
    *,
    top_logprobs: int = 0,
    prefill_step_size: int = 512,
) -> Score:
    """Return the log-probability of each token of `text`, and the `top_logprobs` most probable ones in its place.

    A text is encoded with exactly one BOS in front, so that all of it is scored. Token ids are used as they are; the
    first of them is not scored. `prefill_step_size` tokens are run at a time.

    Raises ContextOverflowError for a text longer than the model's context, and GenerationError or
    TokenizerError for fewer than two tokens, ids that the model lacks, options out of range, and logits that are not
    numbers.
    """
    require_generator(model, tokenizer)
    steps = score_steps(model, tokenizer, text, top_logprobs=top_logprobs, prefill_step_size=prefill_step_size)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return cast(Score, done.value)


def score_steps(
    model: HeliumForCausalLM,
    tokenizer: HeliumTokenizer,
    text: str | Sequence[int] | mx.array,
    *,
    top_logprobs: int,
    prefill_step_size: int,
) -> Generator[None, None, Score]:
    """Do what `score` does, and yield after each step, so that others can take theirs in between; return the score."""
    prefill_step_size = require_whole("prefill_step_size", prefill_step_size, 1)
    tokens, top_logprobs = checked_text(model, tokenizer, text, top_logprobs)
    logprobs: list[float] = []
    tops: list[dict[int, float]] = []
    cache = make_cache(model)
    ids = mx.array([tokens], dtype=mx.int32)
    # Nothing follows the last token, which therefore is not run.
    for start in range(0, len(tokens) - 1, prefill_step_size):
        end = min(start + prefill_step_size, len(tokens) - 1)
        h = model.model.run(model.model.embed(ids[:, start:end]), cache).last_hidden_state[0]
        mx.eval(h, [layer.state for layer in cache])
        for first in range(start, end, HEAD_POSITIONS):
            last = min(first + HEAD_POSITIONS, end)
            logits = model.logits(h[first - start : last - start])
            picked = token_logprobs(logits, ids[0, first + 1 : last + 1], top_logprobs)
            sound = are_sound(logits)
            mx.eval(picked, sound)
            require_sound(sound)
            logprobs += cast("list[float]", picked[0].tolist())
            tops += ranked(*picked[1:]) if top_logprobs else [{} for _ in range(first, last)]
        yield
    texts = _texts_of(tokenizer, tokens)
    scored = text if isinstance(text, str) else "".join(texts[1:])
    return Score(tokens, [None, *logprobs], [{}, *tops], texts, len(scored.encode()))


def checked_text(
    model: HeliumForCausalLM, tokenizer: HeliumTokenizer, text: str | Sequence[int] | mx.array, top_logprobs: int
) -> tuple[list[int], int]:
    """Return the tokens to score, and `top_logprobs`. Raises what `score` raises at the call."""
    vocab_size = model.config.vocab_size
    top_logprobs = require_whole(
        "top_logprobs", top_logprobs, 0, vocab_size, allowed=f"from 0 to vocab_size = {vocab_size}"
    )
    return _tokens_of(model, tokenizer, text), top_logprobs


def _tokens_of(model: HeliumForCausalLM, tokenizer: HeliumTokenizer, text: str | Sequence[int] | mx.array) -> list[int]:
    if isinstance(text, (bytes, bytearray)):
        raise GenerationError("the text is bytes; give a string (decode it) or a list of token ids")
    tokens = token_ids("text", tokenizer.encode(text) if isinstance(text, str) else text, model.config.vocab_size)
    context = model.config.max_position_embeddings
    if len(tokens) > context:
        raise ContextOverflowError(
            f"the text has {len(tokens)} tokens and the model's context is {context}; score it in parts"
        )
    if len(tokens) < 2:
        raise GenerationError(f"the text has {len(tokens)} tokens; a score needs two, the first of them usually BOS")
    return tokens


def _texts_of(tokenizer: HeliumTokenizer, tokens: list[int]) -> list[str]:
    detokenizer = tokenizer.detokenizer()
    texts = [detokenizer.add_token(token) for token in tokens]
    texts[-1] += detokenizer.finish()
    return texts
