"""transformers' logits processors, in its order: what `HeliumForCausalLM.generate` does to a batch's logits.

A processor takes the ids so far, (B, L), and scores, float32 (B, vocab_size), and returns scores. To add one is to
write the function that makes it and a line of `PROCESSORS`, in the place where transformers runs it.

`generation/sampling.py` has the same steps for one request. They differ in ties: here, as in transformers, top-k keeps
every token that equals the k-th, and top-p sums the probabilities from the smallest on.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx

from helium_mlx.model.setting_checks import POSITIVE, SHARE, Check, whole_from
from helium_mlx.model.temperature import tempered

Processor = Callable[[mx.array, mx.array], mx.array]
"""`(ids, scores) -> scores`."""

# Beyond these nothing changes any more, and scores stay finite in float32, a temperature taken together with them.
MIN_PENALTY = 1e-10
MAX_PENALTY = 1e10


@dataclass(frozen=True)
class Call:
    """What processors know of the call that they are made for.

    `left_padding`: for each row how many ids at the left the repetition penalty passes over, or None.
    """

    eos: tuple[int, ...]
    do_sample: bool
    left_padding: mx.array | None = None


@dataclass(frozen=True)
class Setting:
    """A setting of `generate` that is a processor: its name, how it is made, and the values that it may have.

    At the value `off` it does nothing, nor at None. `sampled`: it acts where tokens are drawn only.
    """

    name: str
    make: Callable[..., Processor | None]
    check: Check
    off: object = None
    sampled: bool = False


class Processors(list[Processor]):
    """Makes scores, float32 (B, vocab_size), of the last position's logits and the ids so far."""

    def __call__(self, ids: mx.array, logits: mx.array) -> mx.array:
        """Return the scores that the next ids are chosen by."""
        scores = logits.astype(mx.float32)
        for process in self:
            scores = process(ids, scores)
        return scores


def make_processors(values: Mapping[str, object], call: Call) -> Processors:
    """Return the processors of the settings that are on, in transformers' order."""
    made = Processors()
    for setting in PROCESSORS:
        value = values.get(setting.name)
        if value is None or value == setting.off or (setting.sampled and not call.do_sample):
            continue
        process = setting.make(value, call)
        if process is not None:
            made.append(process)
    return made


def penalize_repetition(penalty: float, left_padding: mx.array | None = None) -> Processor:
    """Divide the positive scores of each row's ids by `penalty` and multiply the negative ones (arXiv:1909.05858)."""
    penalty = min(max(penalty, MIN_PENALTY), MAX_PENALTY)

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        if left_padding is not None:
            ids = mx.where(mx.arange(ids.shape[1]) < left_padding[:, None], scores.shape[-1], ids)
        penalized = mx.where(scores < 0, scores * penalty, scores / penalty)
        return mx.where(_marked(scores, ids), penalized, scores)

    return process


def ban_repeated_ngrams(size: int) -> Processor:
    """Rule out every token that would repeat an n-gram of `size` of its row; padding counts as text."""

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        length = ids.shape[1]
        if length < size:
            return scores
        starts = mx.arange(length - size + 1)
        windows = ids[:, starts[:, None] + mx.arange(size)]
        repeats = (windows[..., :-1] == ids[:, None, length + 1 - size :]).all(axis=-1)
        return mx.where(_marked(scores, mx.where(repeats, windows[..., -1], scores.shape[-1])), -math.inf, scores)

    return process


def ban_until(length: int, tokens: tuple[int, ...]) -> Processor | None:
    """Rule out `tokens` while there are fewer than `length` ids."""
    if not tokens:
        return None

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        if ids.shape[1] >= length:
            return scores
        return mx.where(is_one_of(mx.arange(scores.shape[-1]), tokens), -math.inf, scores)

    return process


def temper(temperature: float) -> Processor:
    """Divide scores by a temperature above 0."""
    return lambda ids, scores: tempered(scores, temperature)


def keep_top_k(k: int) -> Processor:
    """Rule out what is below the k-th largest score of its row."""

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        smallest_kept = mx.topk(scores, min(k, scores.shape[-1]), axis=-1).min(axis=-1, keepdims=True)
        return mx.where(scores < smallest_kept, -math.inf, scores)

    return process


def keep_top_p(p: float) -> Processor:
    """Rule out the least probable tokens whose probabilities sum to at most 1 - p; the most probable stays."""

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        order = mx.argsort(scores, axis=-1)
        cumulative = mx.cumsum(mx.softmax(mx.take_along_axis(scores, order, axis=-1), axis=-1), axis=-1)
        dropped = (cumulative <= 1 - p) & (mx.arange(scores.shape[-1]) < scores.shape[-1] - 1)
        return mx.where(mx.put_along_axis(mx.zeros_like(dropped), order, dropped, axis=-1), -math.inf, scores)

    return process


def keep_min_p(min_p: float) -> Processor:
    """Rule out tokens less probable than `min_p` times the most probable one."""

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        probabilities = mx.softmax(scores, axis=-1)
        return mx.where(probabilities < min_p * probabilities.max(axis=-1, keepdims=True), -math.inf, scores)

    return process


PROCESSORS = (
    Setting("repetition_penalty", lambda p, call: penalize_repetition(p, call.left_padding), POSITIVE, off=1),
    Setting("no_repeat_ngram_size", lambda size, call: ban_repeated_ngrams(size), whole_from(0), off=0),
    Setting("min_length", lambda length, call: ban_until(length, call.eos), whole_from(0), off=0),
    Setting("temperature", lambda t, call: temper(t), POSITIVE, off=1, sampled=True),
    Setting("top_k", lambda k, call: keep_top_k(k), whole_from(0), off=0, sampled=True),
    Setting("top_p", lambda p, call: keep_top_p(p), SHARE, off=1, sampled=True),
    Setting("min_p", lambda p, call: keep_min_p(p), SHARE, sampled=True),
)


def is_one_of(ids: mx.array, values: tuple[int, ...]) -> mx.array:
    """Return where `ids` are one of `values`, same shape, boolean."""
    return (ids[..., None] == mx.array(values, mx.int32)).any(axis=-1)


def _marked(scores: mx.array, ids: mx.array) -> mx.array:
    """Return a boolean array shaped as `scores`, True at each row's ids; the id vocab_size marks nothing."""
    B, vocab_size = scores.shape
    marked = mx.put_along_axis(mx.zeros((B, vocab_size + 1), mx.bool_), ids, mx.array(True), axis=-1)
    return marked[:, :vocab_size]
