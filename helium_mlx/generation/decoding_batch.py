"""Rows that decode together, one token a step: they join after their prompts have run, and leave when they end.

One step is always in flight: while its tokens are read and turned into text, the device computes the next. `PromptRun`
takes prompts into a batch, `DecodingBatch` is the step that all rows share. `batching.py` and the engine run on both.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import mlx.core as mx

from helium_mlx.generation.completion import DecodedToken, FinishReason, ranked
from helium_mlx.generation.request import CompletionRequest
from helium_mlx.generation.sampling import token_logprobs
from helium_mlx.kv_cache.batch import BatchKVCache, filled_caches, regrouped
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.sound_logits import are_finite
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer


class BatchRow:
    """One text on its way through a batch: how many tokens were begun, which of them were read, and why it ended.

    The tokens that a request had generated before it joined are among `tokens`.
    """

    def __init__(self, request: CompletionRequest, model: HeliumForCausalLM, tokenizer: HeliumTokenizer) -> None:
        self.request = request
        self.sampler = request.sampler(model, tokenizer)
        self.text_of = request.text_of(tokenizer)
        self.tokens = list(request.generated)
        self.begun = len(self.tokens)
        self.reason: FinishReason | None = None

    @property
    def remaining(self) -> int:
        """How many tokens may still be begun."""
        return self.request.count - self.begun

    @property
    def continues(self) -> bool:
        """Whether another token is to be computed."""
        return self.reason is None and self.remaining > 0

    def among(self, logits: mx.array) -> mx.array:
        """Return logits, (1, vocab_size), with minus infinity for tokens that cannot come next."""
        return self.sampler.among(logits)

    def draw(self, logits: mx.array) -> mx.array:
        """Start computing the next token, (1,), from logits (1, vocab_size)."""
        return self.sampler(logits)

    def add(self, decoded: DecodedToken) -> str:
        """Take a token that was read; return the text that can be shown with it. `reason` says if it was the last.

        Raises GenerationError for a token that was chosen by logits that are not numbers.
        """
        decoded.require_sound()
        self.tokens.append(decoded.token)
        text, self.reason = self.text_of.add(decoded.token, is_last=len(self.tokens) == self.request.count)
        return text


R = TypeVar("R", bound=BatchRow)


@dataclass(frozen=True)
class _DecodingStep(Generic[R]):
    """Rows, and the newest token of each, (B,), perhaps still being computed; `logprobs` where a row asks for them.

    `highest`, (B,), is the highest logit of each row, which says whether its token can be taken.
    """

    rows: Sequence[R]
    tokens: mx.array
    highest: mx.array
    logprobs: list[mx.array]

    def read(self) -> list[tuple[R, DecodedToken]]:
        """Wait for the tokens; return those of the rows that had not ended before."""
        tokens, sound = cast(list[int], self.tokens.tolist()), are_finite(self.highest)
        # A row that has ended may be here still: its token was begun before that was known.
        places = [place for place, row in enumerate(self.rows) if row.reason is None]
        if not self.logprobs:
            return [
                (self.rows[place], DecodedToken(tokens[place], None, {}, is_sound=sound[place])) for place in places
            ]
        values = cast(list[float], self.logprobs[0].tolist())
        top = ranked(self.logprobs[1], self.logprobs[2])
        read = list[tuple[R, DecodedToken]]()
        for place in places:
            wanted = self.rows[place].request.options.logprobs
            found = dict(list(top[place].items())[:wanted])
            logprob = values[place] if wanted else None
            read.append((self.rows[place], DecodedToken(tokens[place], logprob, found, is_sound=sound[place])))
        return read


@dataclass(frozen=True)
class Prefilled(Generic[R]):
    """A row that waits to join: where its prompt is, and the logits after it, (1, vocab_size)."""

    row: R
    layers: list[BatchKVCache]
    place: int
    logits: mx.array


@dataclass(frozen=True)
class PreemptedRow(Generic[R]):
    """A row that was taken out of a batch: its cache, a batch of one, and its newest token, (1,), not in it yet."""

    row: R
    layers: list[BatchKVCache]
    token: mx.array


class DecodingBatch(Generic[R]):
    """The rows that decode together, and the one step of theirs that is always in flight.

    Rows leave when they end, and whenever their `reason` is set; others join between two steps.
    """

    def __init__(self, model: HeliumForCausalLM) -> None:
        self.model = model
        self._step: _DecodingStep[R] = _sampled([], [])
        self._layers: list[BatchKVCache] = []

    @property
    def rows(self) -> list[R]:
        """The rows that another token is to be computed for."""
        return [row for row in self._step.rows if row.continues]

    @property
    def unread(self) -> list[R]:
        """The rows that have a token in flight which somebody waits for."""
        return [row for row in self._step.rows if row.reason is None]

    @property
    def held(self) -> list[R]:
        """The rows whose caches are held, those included that have ended since the last step."""
        return list(self._step.rows)

    def cache_of(self, row: R) -> tuple[list[BatchKVCache], int]:
        """Return the caches that a row of `held` is in, and its place in them."""
        return self._layers, self._step.rows.index(row)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in flight."""
        return not self._step.rows

    def advance(
        self,
        arrivals: list[Prefilled[R]],
        returning: list[PreemptedRow[R]] | None = None,
        *,
        leaving: Collection[R] = (),
    ) -> list[tuple[R, DecodedToken]]:
        """Start the next step, and return what the one before it and the arrivals' first one gave, once it is there.

        `arrivals` and `returning` join, and are emptied, so that their caches are let go before anybody waits. The rows
        `leaving` get the token that is in flight and no further one.
        """
        step, returning = self._step, returning or []
        kept = [place for place, row in enumerate(step.rows) if row.continues and row not in leaving]
        first = _sampled([each.row for each in arrivals], [each.logits for each in arrivals])
        joining = [each for each in arrivals if each.row.continues]
        rows = [*(step.rows[place] for place in kept), *(each.row for each in [*joining, *returning])]
        following: _DecodingStep[R] = _sampled([], [])
        if rows:
            tokens = step.tokens
            if joining or returning or len(kept) < len(step.rows):
                sources = [*_by_cache(joining), *((each.layers, [0]) for each in returning)]
                self._layers = self._regrouped(rows, kept, sources)
                places = [*kept, *(len(step.rows) + i for i, each in enumerate(arrivals) if each.row.continues)]
                tokens = mx.concatenate([step.tokens, first.tokens])[mx.array(places, dtype=mx.int32)]
                tokens = mx.concatenate([tokens, *(each.token for each in returning)])
            logits = self.model.logits_after(tokens, list(self._layers), self._layers[0].lengths)
            following = _sampled(rows, [logits])
        else:
            self._layers = []
        arrivals.clear()
        returning.clear()
        del joining
        self._step = following
        return [*step.read(), *first.read()]

    def _regrouped(
        self, rows: list[R], kept: list[int], joining: Sequence[tuple[list[BatchKVCache], list[int]]]
    ) -> list[BatchKVCache]:
        """Return the caches of `rows`, with room for the longest that one of them may get."""
        lengths = [self._layers[0].lengths[place] for place in kept]
        lengths += [layers[0].lengths[place] for layers, places in joining for place in places]
        longest = max(length + row.remaining for length, row in zip(lengths, rows, strict=True))
        layers, places = joining[0] if joining else ([], [])
        if kept or len(joining) > 1 or places != list(range(len(layers[0].padding))):
            return regrouped(self._layers, kept, joining, room=longest - max(lengths))
        # Those who come into an empty batch as they were run need no copy.
        for layer in layers:
            layer.reserve(longest)
        return layers

    def extract(self, row: R) -> PreemptedRow[R]:
        """Return a copy of what the batch holds of a row that continues, for it to leave and come back with."""
        place = self._step.rows.index(row)
        layers = regrouped([], [], [(self._layers, [place])], room=row.remaining)
        return PreemptedRow(row, layers, self._step.tokens[place : place + 1])

    def clear(self) -> None:
        """Let go of all rows and of the step in flight."""
        self._step, self._layers = _sampled([], []), []


class PromptRun:
    """Prompts on their way into a cache together, padded on the left, `step_size` columns at a time.

    `held` may have blocks (`kv_cache/batch.py`) of the beginning of each, up to one column, which are not run again.
    """

    def __init__(
        self,
        model: HeliumForCausalLM,
        prompts: Sequence[Sequence[int]],
        *,
        step_size: int,
        held: Sequence[Sequence[mx.array]] = (),
    ) -> None:
        columns = max(map(len, prompts))
        padding = [columns - len(prompt) for prompt in prompts]
        rows = [[0] * left + list(prompt) for left, prompt in zip(padding, prompts, strict=True)]
        self.model = model
        self.step_size = step_size
        self._ids = mx.array(rows, dtype=mx.int32)
        if any(held):
            self.layers = filled_caches(padding, held, reserved=columns)
            return
        self.layers = [BatchKVCache(padding) for _ in range(model.config.num_hidden_layers)]
        for layer in self.layers:
            layer.reserve(columns)

    def advance(self) -> mx.array | None:
        """Run the next columns; after the last ones return the logits after the prompts, (B, vocab_size), lazily."""
        start, columns = self.layers[0].offset, self._ids.shape[1]
        caches, lengths = list[KVCache](self.layers), self.layers[0].lengths
        if start + self.step_size >= columns:
            return self.model.next_logits(self._ids[:, start:], caches, lengths)
        embeddings = self.model.model.embed(self._ids[:, start : start + self.step_size])
        self.model.model.run(embeddings, caches, row_offsets=lengths)
        mx.eval([layer.state for layer in self.layers])
        return None


def prefill_rows(
    model: HeliumForCausalLM, prompts: Sequence[Sequence[int]], *, step_size: int
) -> tuple[list[BatchKVCache], mx.array]:
    """Run prompts through the model together; return their caches and their last logits, (B, vocab_size), lazily."""
    run = PromptRun(model, prompts, step_size=step_size)
    while (logits := run.advance()) is None:
        pass
    return run.layers, logits


def groups_of(lengths: Sequence[int], step_size: int, held: Sequence[int] | None = None) -> list[list[int]]:
    """Return which prompts to run together: those of similar length that fit one step; a long one is on its own.

    `held` says how many tokens of each need not be run. Those that are to be run have to be similarly many too.
    """
    left = list(lengths) if held is None else [all_ - had for all_, had in zip(lengths, held, strict=True)]
    groups = list[list[int]]()
    for place in sorted(range(len(lengths)), key=lambda place: -left[place]):
        group = [*groups[-1], place] if groups else []
        fits = len(group) * max((left[each] for each in group), default=0) <= step_size
        if group and fits and all(_are_alike([count[each] for each in group]) for count in (lengths, left)):
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _are_alike(counts: Sequence[int]) -> bool:
    return 2 * min(counts) >= max(counts)


def _by_cache(joining: Sequence[Prefilled[R]]) -> list[tuple[list[BatchKVCache], list[int]]]:
    parts = list[tuple[list[BatchKVCache], list[int]]]()
    for each in joining:
        if parts and parts[-1][0] is each.layers:
            parts[-1][1].append(each.place)
        else:
            parts.append((each.layers, [each.place]))
    return parts


def _sampled(rows: Sequence[R], logits: list[mx.array]) -> _DecodingStep[R]:
    """Start computing a token for each row from logits that are (len(rows), vocab_size) when put together."""
    if not rows:
        return _DecodingStep([], mx.zeros(0, mx.uint32), mx.zeros(0), [])
    scores = logits[0] if len(logits) == 1 else mx.concatenate(logits)
    for row in rows:
        row.begun += 1
    highest, state = scores.max(axis=-1), list[mx.array]()
    if any(row.sampler.is_held for row in rows):
        scores = mx.concatenate([row.among(scores[place : place + 1]) for place, row in enumerate(rows)])
    if all(row.sampler.takes_best for row in rows):
        tokens = mx.argmax(scores, axis=-1)
    else:
        drawn = []
        for place, row in enumerate(rows):
            drawn.append(row.draw(scores[place : place + 1]))
            state += row.sampler.state
        tokens = mx.concatenate(drawn)
    most = max(row.request.options.logprobs for row in rows)
    logprobs = token_logprobs(scores, tokens, most) if most else []
    mx.async_eval(tokens, state, highest, logprobs)
    return _DecodingStep(rows, tokens, highest, logprobs)
