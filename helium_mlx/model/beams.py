"""Beam search, with or without a draw, as transformers does it: ids and scores are the same.

Each prompt has `num_beams` rows that go on, and as many places for texts that have ended; a step takes the best
continuations of all its rows together. What has ended competes by the sum of its log-probabilities divided by a power
of its length. Scores far below all others stand for "not": -1e9, as there, so that what is compared is the same.
"""

from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from helium_mlx.model.generate_options import GenerationOptions
from helium_mlx.model.generate_outputs import GenerateBeamDecoderOnlyOutput
from helium_mlx.model.losses import logprobs as log_softmax
from helium_mlx.model.processors import Processor, is_one_of
from helium_mlx.model.prompt_rows import Forward
from helium_mlx.model.sound_logits import are_sound, require_sound
from helium_mlx.model.stopping import Stopping

_NOT = -1e9


@dataclass(frozen=True)
class Texts:
    """Some texts of each prompt: `ids` (B, N, L), `scores` (B, N), and for each new id the row of the logits that it
    was chosen by, `rows` (B, N, new), -1 where there is none."""

    ids: mx.array
    rows: mx.array
    scores: mx.array

    def taken(self, places: mx.array, scores: mx.array) -> "Texts":
        """Return those at `places` (B, M), with other scores."""
        return Texts(_taken(self.ids, places), _taken(self.rows, places), scores)

    def longer(self, ids: mx.array, rows: mx.array) -> "Texts":
        """Return the texts with one more id each, (B, N)."""
        return Texts(
            mx.concatenate([self.ids, ids[..., None]], axis=-1),
            mx.concatenate([self.rows, rows[..., None]], axis=-1),
            self.scores,
        )

    def with_others(self, other: "Texts") -> "Texts":
        """Return the texts of both."""
        pairs = ((self.ids, other.ids), (self.rows, other.rows), (self.scores, other.scores))
        return Texts(*(mx.concatenate(list(pair), axis=1) for pair in pairs))


def search(
    forward: Forward, options: GenerationOptions, process: Processor, stopping: Stopping, key: mx.array
) -> mx.array | GenerateBeamDecoderOnlyOutput:
    """Return the best `num_return_sequences` texts of each prompt, filled up to the longest."""
    beams = _Beams(forward, options, process, stopping, key)
    logits = forward.first()
    while beams.advance(logits):
        logits = forward.next(_flat(beams.running.ids))
    texts = beams.ended
    count, prompt_length = options.num_return_sequences, forward.prompt.ids.shape[1]
    ids, rows, scores = (_flat(part[:, :count]) for part in (texts.ids, texts.rows, texts.scores))
    longest = cast(int, (rows >= 0).sum(axis=1).max().item())
    ids, rows = ids[:, : prompt_length + longest], rows[:, :longest]
    return ids if forward.record is None else forward.record.beam_output(ids, scores, rows, forward.prompt.cache)


class _Beams:
    """The texts of all prompts on their way."""

    def __init__(
        self, forward: Forward, options: GenerationOptions, process: Processor, stopping: Stopping, key: mx.array
    ) -> None:
        self.forward, self.options, self.process, self.stopping, self.key = forward, options, process, stopping, key
        N, self.prompt_length = options.num_beams, forward.prompt.ids.shape[1]
        B = forward.prompt.ids.shape[0] // N
        ids = forward.prompt.ids.reshape(B, N, self.prompt_length)
        nothing = mx.full((B, N, 0), -1, mx.int32)
        # All rows of a prompt begin as one.
        self.running = Texts(ids, nothing, mx.broadcast_to(mx.where(mx.arange(N) == 0, 0.0, _NOT), (B, N)))
        self.ended = Texts(ids, nothing, mx.full((B, N), _NOT))
        self.is_ended = mx.zeros((B, N), mx.bool_)
        self.can_improve = mx.ones((B, 1), mx.bool_)
        # transformers takes a pad id of 0 for none here.
        self.fill = -1 if not options.eos else options.pad or options.eos[0]

    def advance(self, logits: mx.array) -> bool:
        """Take the next id of every text, by logits (B * N, vocab_size); return whether to go on."""
        N = self.options.num_beams
        found = self._continuations(logits)
        ends = self._ends(found)
        running, rows_left = _best(found.scores + ends * _NOT, N)
        self._collect(found, ends)
        self.running = found.taken(rows_left, running)
        for cache in self.forward.prompt.cache or []:
            cache.reorder_cache(self.running.rows[..., -1].reshape(-1))
        self.can_improve = self.can_improve & self._could_improve()
        going_on = self.can_improve.any() & ~ends.all()
        if self.options.early_stopping is True:
            going_on = going_on & ~self.is_ended.all()
        sound = are_sound(logits) | self.options.replaces_invalid
        mx.async_eval(going_on, sound, self.running.ids)
        require_sound(sound)
        return cast(bool, going_on.item())

    def _continuations(self, logits: mx.array) -> Texts:
        """Return the best continuations of each prompt's rows together, more of them than may end at once."""
        B, N, _ = self.running.ids.shape
        logits = logits.astype(mx.float32)
        logprobs = self.process(_flat(self.running.ids), log_softmax(logits))
        if self.forward.record is not None:
            self.forward.record.add_step(logits, logprobs)
        vocab_size = logprobs.shape[-1]
        totals = (logprobs.reshape(B, N, vocab_size) + self.running.scores[..., None]).reshape(B, -1)
        count = max(2, 1 + len(self.options.eos)) * N
        if self.options.do_sample:
            # The largest of these are a draw without putting back.
            self.key, key = mx.random.split(self.key)
            _, places = _best(totals + mx.random.gumbel(totals.shape, key=key), count)
            scores, order = _best(mx.take_along_axis(totals, places, axis=1), count)
            places = mx.take_along_axis(places, order, axis=1)
        else:
            scores, places = _best(totals, count)
        parents = places // vocab_size
        rows = parents + mx.arange(B)[:, None] * N
        return self.running.taken(parents, scores).longer((places % vocab_size).astype(mx.int32), rows.astype(mx.int32))

    def _ends(self, found: Texts) -> mx.array:
        """Return which continuations end, (B, count)."""
        B, count, length = found.ids.shape
        if length >= self.options.max_length:
            return mx.ones((B, count), mx.bool_)
        ends = is_one_of(found.ids[..., -1], self.options.eos) if self.options.eos else mx.zeros((B, count), mx.bool_)
        if self.stopping.asks:
            self.stopping.stops.forget()
            scores = None if self.forward.record is None else self.forward.record.scores_so_far
            ends = ends | self.stopping.ended(_flat(found.ids), scores).reshape(B, count)
        return ends

    def _collect(self, found: Texts, ends: mx.array) -> None:
        """Give the places of ended texts to the best of those that had them and those that end now."""
        B, N = self.is_ended.shape
        count, new = found.ids.shape[1], found.rows.shape[-1]
        ends_now = ends & (mx.arange(count) < N)
        scores = found.scores / new**self.options.length_penalty
        if self.options.early_stopping is True:
            scores = scores + self.is_ended.all(axis=1, keepdims=True) * _NOT
        scores = scores + ~self.can_improve * _NOT
        scores = scores + ~ends_now * _NOT
        before = self.ended.longer(mx.full((B, N), self.fill, mx.int32), mx.full((B, N), -1, mx.int32))
        both = before.with_others(Texts(found.ids, found.rows, scores))
        best, places = _best(both.scores, N)
        self.ended = both.taken(places, best)
        self.is_ended = _taken(mx.concatenate([self.is_ended, ends_now], axis=1), places)

    def _could_improve(self) -> mx.array:
        """Return for which prompts a running text could still be better than the worst that has ended, (B, 1)."""
        new = self.running.rows.shape[-1]
        penalty = self.options.length_penalty
        if self.options.early_stopping == "never" and penalty > 0:
            new = self.options.max_length - self.prompt_length
        worst = mx.where(self.is_ended, self.ended.scores.min(axis=1, keepdims=True), _NOT)
        return (self.running.scores[:, :1] / new**penalty > worst).any(axis=1, keepdims=True)


def _best(scores: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """Return the largest of each row, the largest first, and their places, both (B, count)."""
    places = mx.argpartition(-scores, min(count, scores.shape[-1]) - 1, axis=-1)[:, :count]
    values = mx.take_along_axis(scores, places, axis=-1)
    order = mx.argsort(-values, axis=-1)
    return mx.take_along_axis(values, order, axis=-1), mx.take_along_axis(places, order, axis=-1)


def _taken(x: mx.array, places: mx.array) -> mx.array:
    """Return (B, M, ...) of (B, N, ...), those at `places` (B, M)."""
    return mx.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=1)


def _flat(x: mx.array) -> mx.array:
    """Return (B, N, ...) as (B * N, ...)."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
