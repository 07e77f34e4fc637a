"""From logits to the next token: penalties, filters and the draw, all on the device, none of it evaluated here.

The order is transformers': repetition penalty, temperature, top-k, top-p, min-p. Randomness comes from a key of the
request's own; MLX's global random state is neither read nor changed.
"""

import math
import secrets
from dataclasses import dataclass

import mlx.core as mx

from helium_mlx.errors import GenerationError


@dataclass(frozen=True)
class SamplingOptions:
    """What shapes the draw. Temperature 0 is greedy: then only the repetition penalty has an effect.

    `repetition_context_size` tokens, prompt included, are penalised; None is all of them.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_context_size: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, 0 <= self.temperature < math.inf, "a finite number, 0 or more")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _require("top_k", self.top_k, isinstance(self.top_k, int) and self.top_k >= 0, "a whole number, 0 or more")
        _require("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1")
        _require("repetition_penalty", self.repetition_penalty, 1e-3 <= self.repetition_penalty <= 1e3, "0.001 to 1000")
        if self.repetition_context_size is not None:
            size = self.repetition_context_size
            _require(
                "repetition_context_size",
                size,
                isinstance(size, int) and size > 0,
                "1 or more, or None for the whole context",
            )
        if self.seed is not None:
            seed_holds = isinstance(self.seed, int) and 0 <= self.seed < 2**64
            _require("seed", self.seed, seed_holds, "a whole number from 0 to 2^64 - 1")


def _require(name: str, value: float, holds: bool, allowed: str) -> None:
    if not holds:
        raise GenerationError(f"{name} is {value}; it must be {allowed}")


class Sampler:
    """Draws one token after another for one request. It remembers the tokens that the repetition penalty looks at."""

    def __init__(self, options: SamplingOptions, prompt: mx.array) -> None:
        self.options = options
        self.key = mx.random.key(secrets.randbits(64) if options.seed is None else options.seed)
        self.history = self._latest(prompt) if options.repetition_penalty != 1 else None

    def __call__(self, logits: mx.array) -> mx.array:
        """Return the next token, int32 of shape (1,), for logits of shape (1, vocab_size)."""
        if self.history is not None:
            logits = penalize(logits, self.history, self.options.repetition_penalty)
        token = mx.argmax(logits, axis=-1) if self.options.temperature == 0 else self._draw(logits)
        token = token.astype(mx.int32)
        if self.history is not None:
            self.history = self._latest(mx.concatenate([self.history, token]))
        return token

    @property
    def state(self) -> list[mx.array]:
        """The arrays kept from draw to draw, for `mx.async_eval`: left lazy, they would belong to one thread."""
        return [self.key] if self.history is None else [self.key, self.history]

    def _draw(self, logits: mx.array) -> mx.array:
        self.key, key = mx.random.split(self.key)
        return mx.random.categorical(filtered_logits(logits, self.options), key=key)

    def _latest(self, tokens: mx.array) -> mx.array:
        size = self.options.repetition_context_size
        return tokens if size is None else tokens[-size:]


def penalize(logits: mx.array, tokens: mx.array, penalty: float) -> mx.array:
    """Divide the positive logits of `tokens` by `penalty` and multiply the negative ones (arXiv:1909.05858).

    `logits`: (1, vocab_size); `tokens`: integers of shape (T,), repeats allowed, penalised once.
    """
    scores = logits[:, tokens]
    scores = mx.where(scores < 0, scores * penalty, scores / penalty)
    return mx.put_along_axis(logits, tokens[None], scores, axis=-1)


def filtered_logits(logits: mx.array, options: SamplingOptions) -> mx.array:
    """Return float32 logits (1, vocab_size) at the given temperature, with -inf where a filter takes a token out.

    The most probable token always stays.
    """
    logits = logits.astype(mx.float32)
    # The largest becomes 0 first, so that no temperature, however small, overflows.
    logits = (logits - logits.max(axis=-1, keepdims=True)) / options.temperature
    vocab_size = logits.shape[-1]
    if 0 < options.top_k < vocab_size:
        # Exactly k stay, also where several are equal to the smallest of them.
        dropped = mx.argpartition(-logits, options.top_k - 1, axis=-1)[:, options.top_k :]
        logits = mx.put_along_axis(logits, dropped, mx.array(-math.inf), axis=-1)
    if options.top_p < 1:
        order = mx.argsort(-logits, axis=-1)
        probabilities = mx.softmax(mx.take_along_axis(logits, order, axis=-1), axis=-1)
        before = mx.cumsum(probabilities, axis=-1) - probabilities
        kept = mx.put_along_axis(mx.zeros_like(logits), order, (before < options.top_p).astype(mx.float32), axis=-1)
        logits = mx.where(kept > 0, logits, -math.inf)
    if options.min_p > 0:
        floor = logits.max(axis=-1, keepdims=True) + math.log(options.min_p)
        logits = mx.where(logits >= floor, logits, -math.inf)
    return logits


def logprobs(logits: mx.array) -> mx.array:
    """Return float32 log-probabilities, same shape as `logits`, before any filter or temperature."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
