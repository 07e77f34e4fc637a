"""transformers' logits processors, in its order: what `HeliumForCausalLM.generate` does to a batch's logits.

`generation/sampling.py` has the same steps for one request. They differ in ties: here, as in transformers, top-k keeps
every token that equals the k-th, and top-p sums the probabilities from the smallest on.
"""

import math
from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from helium_mlx.model.generate_options import GenerationOptions

# Beyond these nothing changes any more, and scores stay finite in float32, which a draw needs, both taken together.
MIN_TEMPERATURE = 1e-20
MAX_TEMPERATURE = 1e30
MIN_PENALTY = 1e-10
MAX_PENALTY = 1e10


class LogitsProcessors:
    """Makes scores (B, vocab_size), float32, of the last position's logits and the ids so far.

    `left_padding`: for each row how many ids at the left the repetition penalty passes over, or None.
    """

    def __init__(self, options: "GenerationOptions", left_padding: mx.array | None) -> None:
        self.options = options
        self.left_padding = left_padding

    def __call__(self, ids: mx.array, logits: mx.array) -> mx.array:
        """Return the scores that the next ids are chosen by."""
        options, scores = self.options, logits.astype(mx.float32)
        if options.repetition_penalty != 1:
            scores = penalize_repetition(scores, ids, options.repetition_penalty, self.left_padding)
        if options.no_repeat_ngram_size > 0:
            scores = ban_repeated_ngrams(scores, ids, options.no_repeat_ngram_size)
        if options.eos and ids.shape[1] < options.min_length:
            scores = mx.where(is_one_of(mx.arange(scores.shape[-1]), options.eos), -math.inf, scores)
        return self._filtered(scores) if options.do_sample else scores

    def _filtered(self, scores: mx.array) -> mx.array:
        options = self.options
        scores = tempered(scores, options.temperature)
        if options.top_k > 0:
            scores = keep_top_k(scores, options.top_k)
        if options.top_p < 1:
            scores = keep_top_p(scores, options.top_p)
        return scores if options.min_p is None else keep_min_p(scores, options.min_p)


def penalize_repetition(scores: mx.array, ids: mx.array, penalty: float, left_padding: mx.array | None) -> mx.array:
    """Divide the positive scores of each row's ids by `penalty` and multiply the negative ones (arXiv:1909.05858)."""
    if left_padding is not None:
        ids = mx.where(mx.arange(ids.shape[1]) < left_padding[:, None], scores.shape[-1], ids)
    penalty = min(max(penalty, MIN_PENALTY), MAX_PENALTY)
    penalized = mx.where(scores < 0, scores * penalty, scores / penalty)
    return mx.where(_marked(scores, ids), penalized, scores)


def ban_repeated_ngrams(scores: mx.array, ids: mx.array, size: int) -> mx.array:
    """Give -inf to every token that would repeat an n-gram of `size` of its row; padding counts as text."""
    length = ids.shape[1]
    if length < size:
        return scores
    starts = mx.arange(length - size + 1)
    windows = ids[:, starts[:, None] + mx.arange(size)]
    repeats = (windows[..., :-1] == ids[:, None, length + 1 - size :]).all(axis=-1)
    return mx.where(_marked(scores, mx.where(repeats, windows[..., -1], scores.shape[-1])), -math.inf, scores)


def keep_top_k(scores: mx.array, k: int) -> mx.array:
    """Give -inf to what is below the k-th largest score of its row."""
    smallest_kept = mx.topk(scores, min(k, scores.shape[-1]), axis=-1).min(axis=-1, keepdims=True)
    return mx.where(scores < smallest_kept, -math.inf, scores)


def keep_top_p(scores: mx.array, p: float) -> mx.array:
    """Give -inf to the least probable tokens whose probabilities sum to at most 1 - p; the most probable stays."""
    order = mx.argsort(scores, axis=-1)
    cumulative = mx.cumsum(mx.softmax(mx.take_along_axis(scores, order, axis=-1), axis=-1), axis=-1)
    dropped = (cumulative <= 1 - p) & (mx.arange(scores.shape[-1]) < scores.shape[-1] - 1)
    return mx.where(mx.put_along_axis(mx.zeros_like(dropped), order, dropped, axis=-1), -math.inf, scores)


def keep_min_p(scores: mx.array, min_p: float) -> mx.array:
    """Give -inf to tokens less probable than `min_p` times the most probable one."""
    probabilities = mx.softmax(scores, axis=-1)
    return mx.where(probabilities < min_p * probabilities.max(axis=-1, keepdims=True), -math.inf, scores)


def is_one_of(ids: mx.array, values: tuple[int, ...]) -> mx.array:
    """Return where `ids` are one of `values`, same shape, boolean."""
    return (ids[..., None] == mx.array(values, mx.int32)).any(axis=-1)


def _marked(scores: mx.array, ids: mx.array) -> mx.array:
    """Return a boolean array shaped as `scores`, True at each row's ids; the id vocab_size marks nothing."""
    B, vocab_size = scores.shape
    marked = mx.put_along_axis(mx.zeros((B, vocab_size + 1), mx.bool_), ids, mx.array(True), axis=-1)
    return marked[:, :vocab_size]


def tempered(logits: mx.array, temperature: float) -> mx.array:
    """Return logits, float32, divided by a temperature above 0."""
    return logits if temperature == 1 else logits / bounded_temperature(temperature)


def bounded_temperature(temperature: float) -> float:
    """Return a temperature above 0 as one by which float32 stays finite."""
    return min(max(temperature, MIN_TEMPERATURE), MAX_TEMPERATURE)
