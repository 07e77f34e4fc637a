"""Rows that decode together, one token a step: they join after their prompts have run, and leave when they end.

One step is always in flight: while its tokens are read and turned into text, the device computes the next. `PromptRun`
takes prompts into a batch, `DecodingBatch` is the step that all rows share. `batching.py` and the engine run on both.
"""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from helium_mlx.generation.completion import CompletionText, DecodedToken, FinishReason, ranked
from helium_mlx.generation.sampling import Sampler, SamplingOptions, token_logprobs
from helium_mlx.kv_cache.batch import BatchKVCache, regrouped
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.model.helium import HeliumForCausalLM


class Row:
    """One text on its way through a batch: how many tokens were begun, which of them were read, and why it ended.

    `count` is how many tokens it may have; `top_logprobs` how many alternatives are asked for with each.
    """

    def __init__(self, sampler: Sampler, text_of: CompletionText, count: int, *, top_logprobs: int = 0) -> None:
        self.sampler = sampler
        self.text_of = text_of
        self.count = count
        self.top_logprobs = top_logprobs
        self.is_plain_greedy = _is_plain_greedy(sampler.options)
        self.begun = 0
        self.tokens: list[int] = []
        self.reason: FinishReason | None = None

    @property
    def to_come(self) -> int:
        """How many tokens may still be begun."""
        return self.count - self.begun

    @property
    def goes_on(self) -> bool:
        """Whether another token is to be computed."""
        return self.reason is None and self.to_come > 0

    def draw(self, logits: mx.array) -> mx.array:
        """Start computing the next token, (1,), from logits (1, vocab_size)."""
        return self.sampler(logits)

    def add(self, token: int) -> str:
        """Take a token that was read; return the text that can be shown with it. `reason` says if it was the last."""
        self.tokens.append(token)
        text, self.reason = self.text_of.add(token, is_last=len(self.tokens) == self.count)
        return text


@dataclass(frozen=True)
class _Step:
    """Rows, and the newest token of each, (B,), perhaps still being computed; `logprobs` where a row asks for them."""

    rows: Sequence[Row]
    tokens: mx.array
    logprobs: list[mx.array]

    def read(self) -> list[tuple[Row, DecodedToken]]:
        """Wait for the tokens; return those of the rows that had not ended before."""
        tokens = cast(list[int], self.tokens.tolist())
        # A row that has ended may be here still: its token was begun before that was known.
        places = [place for place, row in enumerate(self.rows) if row.reason is None]
        if not self.logprobs:
            return [(self.rows[place], DecodedToken(tokens[place], None, {})) for place in places]
        values = cast(list[float], self.logprobs[0].tolist())
        top = ranked(self.logprobs[1], self.logprobs[2])
        read = list[tuple[Row, DecodedToken]]()
        for place in places:
            wanted = self.rows[place].top_logprobs
            found = dict(list(top[place].items())[:wanted])
            read.append((self.rows[place], DecodedToken(tokens[place], values[place] if wanted else None, found)))
        return read


@dataclass(frozen=True)
class Prefilled:
    """A row that waits to join: where its prompt is, and the logits behind it, (1, vocab_size)."""

    row: Row
    layers: list[BatchKVCache]
    place: int
    logits: mx.array


@dataclass(frozen=True)
class Parked:
    """A row that was taken out of a batch: its cache, a batch of one, and its newest token, (1,), not in it yet."""

    row: Row
    layers: list[BatchKVCache]
    token: mx.array


class DecodingBatch:
    """The rows that decode together, and the one step of theirs that is always in flight.

    Rows leave when they end, and whenever their `reason` is set; others join between two steps.
    """

    def __init__(self, model: HeliumForCausalLM) -> None:
        self.model = model
        self._step = _no_step()
        self._layers: list[BatchKVCache] = []

    @property
    def rows(self) -> list[Row]:
        """The rows that go on."""
        return [row for row in self._step.rows if row.goes_on]

    @property
    def unread(self) -> list[Row]:
        """The rows that have a token in flight which somebody waits for."""
        return [row for row in self._step.rows if row.reason is None]

    @property
    def held(self) -> list[Row]:
        """The rows whose caches are held, those included that have ended since the last step."""
        return list(self._step.rows)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in flight."""
        return not self._step.rows

    def advance(
        self, arrivals: list[Prefilled], returning: list[Parked] | None = None, *, leaving: Collection[Row] = ()
    ) -> list[tuple[Row, DecodedToken]]:
        """Start the next step, and return what the one before it and the arrivals' first one gave, once it is there.

        `arrivals` and `returning` join, and are emptied, so that their caches are let go before anybody waits. The rows
        `leaving` get the token that is in flight and no further one.
        """
        step, returning = self._step, returning or []
        kept = [place for place, row in enumerate(step.rows) if row.goes_on and row not in leaving]
        first = _sampled([each.row for each in arrivals], [each.logits for each in arrivals])
        joining = [each for each in arrivals if each.row.goes_on]
        rows = [*(step.rows[place] for place in kept), *(each.row for each in [*joining, *returning])]
        following = _no_step()
        if rows:
            tokens = step.tokens
            if joining or returning or len(kept) < len(step.rows):
                sources = [*_by_cache(joining), *((each.layers, [0]) for each in returning)]
                self._layers = self._regrouped(rows, kept, sources)
                places = [*kept, *(len(step.rows) + i for i, each in enumerate(arrivals) if each.row.goes_on)]
                tokens = mx.concatenate([step.tokens, first.tokens])[mx.array(places, dtype=mx.int32)]
                tokens = mx.concatenate([tokens, *(each.token for each in returning)])
            logits = self.model.next_logits(tokens[:, None], list(self._layers), self._layers[0].lengths)
            following = _sampled(rows, [logits])
        else:
            self._layers = []
        arrivals.clear()
        returning.clear()
        del joining
        self._step = following
        return [*step.read(), *first.read()]

    def _regrouped(
        self, rows: list[Row], kept: list[int], joining: Sequence[tuple[list[BatchKVCache], list[int]]]
    ) -> list[BatchKVCache]:
        """Return the caches of `rows`, with room for the longest that one of them may get."""
        lengths = [self._layers[0].lengths[place] for place in kept]
        lengths += [layers[0].lengths[place] for layers, places in joining for place in places]
        longest = max(length + row.to_come for length, row in zip(lengths, rows, strict=True))
        layers, places = joining[0] if joining else ([], [])
        if kept or len(joining) > 1 or places != list(range(len(layers[0].padding))):
            return regrouped(self._layers, kept, joining, room=longest - max(lengths))
        # Those who come into an empty batch as they were run need no copy.
        for layer in layers:
            layer.reserve(longest)
        return layers

    def parked(self, row: Row) -> Parked:
        """Return a copy of what the batch holds of a row that goes on, for it to leave and come back with."""
        place = self._step.rows.index(row)
        layers = regrouped([], [], [(self._layers, [place])], room=row.to_come)
        return Parked(row, layers, self._step.tokens[place : place + 1])

    def clear(self) -> None:
        """Let go of all rows and of the step in flight."""
        self._step, self._layers = _no_step(), []


def _no_step() -> _Step:
    return _Step([], mx.zeros(0, mx.uint32), [])


class PromptRun:
    """Prompts on their way into a cache together, padded on the left, `step_size` columns at a time."""

    def __init__(self, model: HeliumForCausalLM, prompts: Sequence[Sequence[int]], *, step_size: int) -> None:
        columns = max(map(len, prompts))
        padding = [columns - len(prompt) for prompt in prompts]
        rows = [[0] * left + list(prompt) for left, prompt in zip(padding, prompts, strict=True)]
        self.model = model
        self.step_size = step_size
        self.layers = [BatchKVCache(padding) for _ in range(model.config.num_hidden_layers)]
        self._ids = mx.array(rows, dtype=mx.int32)
        for layer in self.layers:
            layer.reserve(columns)

    def advance(self) -> mx.array | None:
        """Run the next columns; after the last ones return the logits behind the prompts, (B, vocab_size), lazily."""
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


def groups_of(lengths: Sequence[int], step_size: int) -> list[list[int]]:
    """Return which prompts to run together: those of similar length that fit one step; a long one is on its own."""
    groups = list[list[int]]()
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and (len(groups[-1]) + 1) * longest <= step_size and 2 * lengths[place] >= longest:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _by_cache(joining: Sequence[Prefilled]) -> list[tuple[list[BatchKVCache], list[int]]]:
    parts = list[tuple[list[BatchKVCache], list[int]]]()
    for each in joining:
        if parts and parts[-1][0] is each.layers:
            parts[-1][1].append(each.place)
        else:
            parts.append((each.layers, [each.place]))
    return parts


def _sampled(rows: Sequence[Row], logits: list[mx.array]) -> _Step:
    """Start computing a token for each row from logits that are (len(rows), vocab_size) when put together."""
    if not rows:
        return _no_step()
    scores = logits[0] if len(logits) == 1 else mx.concatenate(logits)
    for row in rows:
        row.begun += 1
    state = list[mx.array]()
    if all(row.is_plain_greedy for row in rows):
        tokens = mx.argmax(scores, axis=-1)
    else:
        drawn = []
        for place, row in enumerate(rows):
            drawn.append(row.draw(scores[place : place + 1]))
            state += row.sampler.state
        tokens = mx.concatenate(drawn)
    most = max(row.top_logprobs for row in rows)
    logprobs = token_logprobs(scores, tokens, most) if most else []
    mx.async_eval(tokens, state, logprobs)
    return _Step(rows, tokens, logprobs)


def _is_plain_greedy(options: SamplingOptions) -> bool:
    """Return whether the most probable token is taken as it is, so that all rows can be sampled as one."""
    # What only shapes a draw is put aside; anything else that is set makes the options differ from the plain ones.
    no_draw = dataclasses.replace(options, top_p=1.0, top_k=0, min_p=0.0, repetition_context_size=None, seed=None)
    return no_draw == SamplingOptions()
