"""transformers' logits processors, in its order: what `HeliumForCausalLM.generate` does to a batch's logits.

A processor takes the ids so far, (B, L), and scores, float32 (B, vocab_size), and returns scores. To add one is to
write the function that makes it and a line of `PROCESSORS`, in the place where transformers runs it.

`generation/sampling.py` has the same steps for one request. They differ in ties: here, as in transformers, top-k keeps
every token that equals the k-th, and top-p sums the probabilities from the smallest on.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from helium_mlx.checkpoint.generation_config import SequenceBias
from helium_mlx.errors import GenerationError
from helium_mlx.model.guidance import Unconditional
from helium_mlx.model.losses import logprobs as log_softmax
from helium_mlx.model.setting_checks import (
    BIASES,
    CALL,
    CALLS,
    DECAY,
    FLAG,
    ID,
    ID_OR_IDS,
    POSITIVE,
    SCALE,
    SEQUENCES,
    SHARE,
    WHOLE_LIST,
    Check,
    number,
    whole_from,
)
from helium_mlx.model.temperature import tempered

Processor = Callable[[mx.array, mx.array], mx.array]
"""`(ids, scores) -> scores`."""
AllowedTokens = Callable[[int, mx.array], "Sequence[int] | mx.array"]
"""`(number of the prompt, ids of the row) -> ids that may follow`."""

# Beyond these nothing changes any more, and scores stay finite in float32, a temperature taken together with them.
MIN_PENALTY = 1e-10
MAX_PENALTY = 1e10


@dataclass(frozen=True)
class Call:
    """What processors know of the call that they are made for.

    `prompt`: the ids (B, L) that every row begins with, L is 0 where embeddings stand for them. `left_padding`: for
    each row how many ids at the left the repetition penalty passes over, or None. `max_length` counts the prompt.
    `rows_each`: rows of one prompt. `least_kept`: tokens that a filter leaves. `unconditional`: what gives the logits
    that guidance goes away from.
    """

    prompt: mx.array
    eos: tuple[int, ...]
    max_length: int
    do_sample: bool
    left_padding: mx.array | None = None
    rows_each: int = 1
    least_kept: int = 1
    unconditional: Unconditional | None = None
    is_begun_by_bos: bool = False

    @property
    def length(self) -> int:
        """How many ids the prompt has."""
        return self.prompt.shape[1]

    @property
    def begin(self) -> int:
        """How many ids there are before the first that is not forced."""
        return self.length + (self.is_begun_by_bos and self.length <= 1)


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

    def is_on(self, value: object, call: Call) -> bool:
        """Return whether a value makes it do anything."""
        return value is not None and value != self.off and (call.do_sample or not self.sampled)


class LogitsProcessor:
    """What code for transformers derives its processors from; any function of ids and scores is as good."""

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        """Return the scores that the next ids are chosen by."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__ of its own")


class LogitsProcessorList(list[Processor]):
    """Makes scores, float32 (B, vocab_size), of the last position's logits and the ids so far.

    `may_leave_none`: whether they may rule out every token of a row, which filters of what is drawn never do.
    """

    may_leave_none = False

    def __call__(self, ids: mx.array, logits: mx.array) -> mx.array:
        """Return the scores that the next ids are chosen by."""
        scores = logits.astype(mx.float32)
        for process in self:
            scores = process(ids, scores)
        return scores

    @classmethod
    def of(cls, given: Sequence[Processor]) -> "LogitsProcessorList":
        """Return a caller's own functions, each called with arrays that it may write to, and its answer checked."""
        return cls(_own(process) for process in given)


def make_processors(values: Mapping[str, object], call: Call) -> LogitsProcessorList:
    """Return the processors of the settings that are on, in transformers' order."""
    made = LogitsProcessorList()
    for setting in PROCESSORS:
        value = values.get(setting.name)
        process = setting.make(value, call) if setting.is_on(value, call) else None
        if process is not None:
            made.append(process)
            made.may_leave_none |= not setting.sampled
    return made


def guide(scale: float, unconditional: Unconditional) -> Processor:
    """Go away from what the model says without the prompt, by `scale`, which is 1 for not at all (arXiv:2306.17806)."""

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        without = log_softmax(unconditional.logits(ids))
        return scale * (log_softmax(scores) - without) + without

    return process


def bias_sequences(bias: SequenceBias) -> Processor:
    """Add to the score of the last id of each sequence, where the others come before it."""
    bias = _biases(bias)
    alone = {sequence[0]: value for sequence, value in bias.items() if len(sequence) == 1}
    lengths = sorted({len(sequence) for sequence in bias} - {1})
    longer = [_ending(bias, length) for length in lengths]
    ids_alone, values_alone = mx.array(list(alone), mx.int32), mx.array(list(alone.values()), mx.float32)
    # Left lazy, they would belong to this thread.
    mx.eval(ids_alone, values_alone, longer)

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        added = mx.zeros_like(scores)
        if alone:
            added[:, ids_alone] = values_alone
        for before, last, values in longer:
            if before.shape[1] <= ids.shape[1]:
                follows = (ids[:, None, -before.shape[1] :] == before).all(axis=-1)
                added = added.at[:, last].add(mx.where(follows, values, 0))
        return scores + added

    return process


def ban_sequences(sequences: Sequence[Sequence[int]], eos: tuple[int, ...] = ()) -> Processor | None:
    """Rule out the last id of each sequence where the others come before it; what ends the text is never banned."""
    kept = [tuple(sequence) for sequence in sequences if not (len(sequence) == 1 and sequence[0] in eos)]
    return bias_sequences(dict.fromkeys(kept, -math.inf)) if kept else None


def encourage_prompt(penalty: float, prompt: mx.array) -> Processor | None:
    """Multiply the positive scores of the prompt's ids by `penalty` and divide the negative ones."""
    if not prompt.shape[1]:
        return None
    repeat = penalize_repetition(1 / penalty)
    return lambda ids, scores: repeat(prompt, scores)


def ban_prompt_ngrams(size: int, prompt: mx.array) -> Processor | None:
    """Rule out every token that would repeat an n-gram of `size` of its row's prompt."""
    if prompt.shape[1] < size:
        return None
    windows = _windows(prompt, size)
    return lambda ids, scores: _without_repeats(ids, scores, windows)


def allow_only(tokens_after: AllowedTokens, rows_each: int = 1) -> Processor:
    """Rule out all but what `tokens_after(prompt's number, row's ids)` returns for each row."""

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        B, vocab_size = scores.shape
        allowed = [_tokens_allowed(tokens_after(row // rows_each, ids[row]), vocab_size) for row in range(B)]
        longest = max(map(len, allowed))
        padded = mx.array([tokens + [vocab_size] * (longest - len(tokens)) for tokens in allowed], mx.int32)
        mask = mx.where(_marked(scores, padded), 0, -math.inf)
        left = scores + mask
        # Where other processors left nothing of what is allowed, all of that is.
        nothing = mx.isneginf(left.max(axis=-1)).reshape(-1, rows_each).all(axis=-1)
        return mx.where(mx.repeat(nothing, rows_each)[:, None], mask, left)

    return process


def force_at(length: int, tokens: tuple[int, ...]) -> Processor:
    """Rule out all but `tokens` where there are `length` ids; those are then as likely as each other."""

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        if ids.shape[1] != length:
            return scores
        forced = is_one_of(mx.arange(scores.shape[-1]), tokens)
        return mx.broadcast_to(mx.where(forced, 0.0, -math.inf), scores.shape)

    return process


def replace_invalid() -> Processor:
    """Put 0 for NaN, and float32's largest numbers for infinities."""
    return lambda ids, scores: mx.nan_to_num(scores)


def favour_end(decay: Sequence[float], prompt_length: int, eos: tuple[int, ...]) -> Processor | None:
    """Raise the scores of what ends the text, from `decay[0]` generated ids on, by powers of `decay[1]`."""
    start, factor = prompt_length + decay[0], decay[1]
    if not eos:
        return None

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        after = ids.shape[1] - start
        if after <= 0:
            return scores
        ends = is_one_of(mx.arange(scores.shape[-1]), eos) & mx.isfinite(scores)
        return mx.where(ends, scores + mx.abs(scores) * (factor**after - 1), scores)

    return process


def ban(tokens: Sequence[int], at: int | None = None) -> Processor:
    """Rule out `tokens`: always, or where there are `at` ids."""
    values = tuple(tokens)

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        if not values or at not in (None, ids.shape[1]):
            return scores
        return mx.where(is_one_of(mx.arange(scores.shape[-1]), values), -math.inf, scores)

    return process


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
        return scores if ids.shape[1] < size else _without_repeats(ids, scores, _windows(ids, size))

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


def keep_top_h(share: float) -> Processor:
    """Rule out all but the most probable of the 100 most probable tokens whose entropy is that share of theirs
    (arXiv:2509.02510)."""

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        order = mx.argsort(-scores, axis=-1)[:, :100]
        logprobs = log_softmax(mx.take_along_axis(scores, order, axis=-1))
        terms = _surprises(logprobs)
        kept = mx.cumsum(terms, axis=-1) <= terms.sum(axis=-1, keepdims=True) * share
        kept = (kept & (mx.exp(logprobs) > 0)) | (mx.arange(order.shape[-1]) == 0)
        return mx.where(mx.put_along_axis(mx.zeros(scores.shape, mx.bool_), order, kept, axis=-1), scores, -math.inf)

    return process


def keep_top_k(k: int, least: int = 1) -> Processor:
    """Rule out what is below the k-th largest score of its row."""
    return lambda ids, scores: mx.where(scores < _largest(scores, max(k, least)), -math.inf, scores)


def keep_top_p(p: float, least: int = 1) -> Processor:
    """Rule out the least probable tokens whose probabilities sum to at most 1 - p; the `least` most probable stay."""

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        order = mx.argsort(scores, axis=-1)
        cumulative = mx.cumsum(mx.softmax(mx.take_along_axis(scores, order, axis=-1), axis=-1), axis=-1)
        dropped = (cumulative <= 1 - p) & (mx.arange(scores.shape[-1]) < scores.shape[-1] - least)
        return mx.where(mx.put_along_axis(mx.zeros_like(dropped), order, dropped, axis=-1), -math.inf, scores)

    return process


def keep_min_p(min_p: float, least: int = 1) -> Processor:
    """Rule out tokens less probable than `min_p` times the most probable one."""

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        probabilities = mx.softmax(scores, axis=-1)
        dropped = probabilities < min_p * probabilities.max(axis=-1, keepdims=True)
        return _without(scores, dropped, least)

    return process


def keep_typical(mass: float, least: int = 1) -> Processor:
    """Keep, up to `mass` of probability, the tokens whose surprise is nearest to the expected one
    (arXiv:2202.00666)."""

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        logprobs = log_softmax(scores)
        distance = mx.abs(-logprobs - _surprises(logprobs).sum(axis=-1, keepdims=True))
        order = mx.argsort(distance, axis=-1)
        cumulative = mx.cumsum(mx.softmax(mx.take_along_axis(scores, order, axis=-1), axis=-1), axis=-1)
        last = mx.minimum((cumulative < mass).sum(axis=-1, keepdims=True), scores.shape[-1] - 1)
        nearest = mx.take_along_axis(distance, order, axis=-1)
        dropped = nearest > mx.take_along_axis(nearest, last, axis=-1)
        dropped = dropped & (mx.arange(scores.shape[-1]) >= least)
        return mx.where(mx.put_along_axis(mx.zeros_like(dropped), order, dropped, axis=-1), -math.inf, scores)

    return process


def cut_epsilon(epsilon: float, least: int = 1) -> Processor:
    """Rule out tokens less probable than `epsilon` (arXiv:2210.15191)."""
    return lambda ids, scores: _without(scores, mx.softmax(scores, axis=-1) < epsilon, least)


def cut_eta(epsilon: float, least: int = 1) -> Processor:
    """Rule out tokens less probable than `epsilon`, or than its root falls to with entropy (arXiv:2210.15191)."""

    def process(ids: mx.array, scores: mx.array) -> mx.array:
        logprobs = log_softmax(scores)
        entropy = _surprises(logprobs).sum(axis=-1, keepdims=True)
        bound = mx.minimum(epsilon, math.sqrt(epsilon) * mx.exp(-entropy))
        return _without(scores, mx.softmax(scores, axis=-1) < bound, least)

    return process


def normalize() -> Processor:
    """Make log-probabilities of scores."""
    return lambda ids, scores: log_softmax(scores)


_BELOW_ONE = number(lambda value: 0 <= value < 1, "from 0 to 1, 1 not included")
_TYPICAL = number(lambda value: 0 < value <= 1, "above 0 and at most 1")

PROCESSORS = (
    Setting("guidance_scale", lambda scale, call: guide(scale, call.unconditional), SCALE, off=1),
    Setting("sequence_bias", lambda bias, call: bias_sequences(bias), BIASES),
    Setting("encoder_repetition_penalty", lambda p, call: encourage_prompt(p, call.prompt), POSITIVE, off=1),
    Setting("repetition_penalty", lambda p, call: penalize_repetition(p, call.left_padding), POSITIVE, off=1),
    Setting("no_repeat_ngram_size", lambda size, call: ban_repeated_ngrams(size), whole_from(0), off=0),
    Setting("encoder_no_repeat_ngram_size", lambda n, call: ban_prompt_ngrams(n, call.prompt), whole_from(0), off=0),
    Setting("bad_words_ids", lambda sequences, call: ban_sequences(sequences, call.eos), SEQUENCES),
    Setting("min_length", lambda length, call: ban_until(length, call.eos), whole_from(0), off=0),
    Setting("prefix_allowed_tokens_fn", lambda tokens_after, call: allow_only(tokens_after, call.rows_each), CALL),
    Setting("forced_bos_token_id", lambda token, call: force_at(1, (token,)), ID),
    Setting("forced_eos_token_id", lambda ids, call: force_at(call.max_length - 1, as_ids(ids)), ID_OR_IDS),
    Setting("remove_invalid_values", lambda _, call: replace_invalid(), FLAG, off=False),
    Setting("exponential_decay_length_penalty", lambda decay, call: favour_end(decay, call.length, call.eos), DECAY),
    Setting("suppress_tokens", lambda tokens, call: ban(tokens), WHOLE_LIST),
    Setting("begin_suppress_tokens", lambda tokens, call: ban(tokens, at=call.begin), WHOLE_LIST),
    Setting("logits_processor", lambda given, call: LogitsProcessorList.of(given), CALLS),
    Setting("temperature", lambda t, call: temper(t), POSITIVE, off=1, sampled=True),
    Setting("top_h", lambda share, call: keep_top_h(share), _TYPICAL, sampled=True),
    Setting("top_k", lambda k, call: keep_top_k(k, call.least_kept), whole_from(0), off=0, sampled=True),
    Setting("top_p", lambda p, call: keep_top_p(p, call.least_kept), SHARE, off=1, sampled=True),
    Setting("min_p", lambda p, call: keep_min_p(p, call.least_kept), SHARE, sampled=True),
    Setting("typical_p", lambda mass, call: keep_typical(mass, call.least_kept), _TYPICAL, off=1, sampled=True),
    Setting("epsilon_cutoff", lambda e, call: cut_epsilon(e, call.least_kept), _BELOW_ONE, off=0, sampled=True),
    Setting("eta_cutoff", lambda e, call: cut_eta(e, call.least_kept), _BELOW_ONE, off=0, sampled=True),
    Setting("renormalize_logits", lambda _, call: normalize(), FLAG, off=False),
)


def is_one_of(ids: mx.array, values: tuple[int, ...]) -> mx.array:
    """Return where `ids` are one of `values`, same shape, boolean."""
    return (ids[..., None] == mx.array(values, mx.int32)).any(axis=-1)


def _marked(scores: mx.array, ids: mx.array) -> mx.array:
    """Return a boolean array shaped as `scores`, True at each row's ids; the id vocab_size marks nothing."""
    B, vocab_size = scores.shape
    marked = mx.put_along_axis(mx.zeros((B, vocab_size + 1), mx.bool_), ids, mx.array(True), axis=-1)
    return marked[:, :vocab_size]


def as_ids(value: int | Sequence[int]) -> tuple[int, ...]:
    """Return one id or several as several."""
    return (value,) if isinstance(value, int) else tuple(value)


def _own(process: Processor) -> Processor:
    def checked(ids: mx.array, scores: mx.array) -> mx.array:
        # Copies, since writing to an mx.array changes the caller's.
        result = cast(object, process(copy.copy(ids), copy.copy(scores)))
        if not isinstance(result, mx.array) or result.shape != scores.shape:
            came = f"shape {result.shape}" if isinstance(result, mx.array) else type(result).__name__
            raise GenerationError(
                f"a logits processor returned {came}; it must return scores, an mx.array of shape {scores.shape}"
            )
        return result.astype(mx.float32)

    return checked


def _biases(given: SequenceBias) -> dict[tuple[int, ...], float]:
    pairs = given.items() if isinstance(given, Mapping) else given
    return {tuple(sequence): float(value) for sequence, value in pairs}


def _ending(bias: Mapping[tuple[int, ...], float], length: int) -> tuple[mx.array, mx.array, mx.array]:
    """Return what comes before the last ids of the sequences of one length, those ids, and their biases."""
    sequences = [sequence for sequence in bias if len(sequence) == length]
    before = mx.array([sequence[:-1] for sequence in sequences], mx.int32)
    last = mx.array([sequence[-1] for sequence in sequences], mx.int32)
    return before, last, mx.array([bias[sequence] for sequence in sequences], mx.float32)


def _tokens_allowed(given: Sequence[int] | mx.array, vocab_size: int) -> list[int]:
    to_list = getattr(given, "tolist", None)
    tokens = cast(list[int], to_list() if callable(to_list) else list(given))
    if not tokens or not all(type(token) is int and 0 <= token < vocab_size for token in tokens):
        raise GenerationError(
            f"prefix_allowed_tokens_fn returned {tokens[:8]}; it must return ids, at least one, below {vocab_size}"
        )
    return tokens


def _windows(ids: mx.array, size: int) -> mx.array:
    """Return the n-grams of each row, (B, count, size)."""
    return ids[:, mx.arange(ids.shape[1] - size + 1)[:, None] + mx.arange(size)]


def _without_repeats(ids: mx.array, scores: mx.array, windows: mx.array) -> mx.array:
    """Rule out the last of each of `windows`, (B, count, size), whose others are what `ids` end in."""
    before = windows.shape[-1] - 1
    if ids.shape[1] < before:
        return scores
    repeats = (windows[..., :-1] == ids[:, None, ids.shape[1] - before :]).all(axis=-1)
    return mx.where(_marked(scores, mx.where(repeats, windows[..., -1], scores.shape[-1])), -math.inf, scores)


def _without(scores: mx.array, dropped: mx.array, least: int) -> mx.array:
    """Rule out what is dropped, but for the `least` most probable tokens of each row."""
    return mx.where(dropped & (scores < _largest(scores, least)), -math.inf, scores)


def _largest(scores: mx.array, k: int) -> mx.array:
    """Return the k-th largest score of each row, (B, 1)."""
    if k == 1:
        return scores.max(axis=-1, keepdims=True)
    return mx.topk(scores, min(k, scores.shape[-1]), axis=-1).min(axis=-1, keepdims=True)


def _surprises(logprobs: mx.array) -> mx.array:
    """Return -p log p, 0 where a token is ruled out: what sums to the entropy."""
    return mx.where(mx.isneginf(logprobs), 0, -logprobs * mx.exp(logprobs))
