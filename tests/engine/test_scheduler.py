"""Who runs next, driven step by step: no thread, no lock, no clock."""

from collections.abc import Callable, Iterator
from typing import cast

import mlx.core as mx
import pytest
from passes import rows_and_columns

import helium_mlx
from helium_mlx.engine.channels import Channel
from helium_mlx.engine.memory import MemoryBudget
from helium_mlx.engine.scheduler import MAX_FAILURES, Scheduler
from helium_mlx.engine.tasks import ScoreRun
from helium_mlx.generation.completion import GenerationChunk
from helium_mlx.generation.request import CompletionOptions, checked_request
from helium_mlx.kv_cache.memory import bytes_per_token
from helium_mlx.model.helium import HeliumForCausalLM, HeliumModel
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]
Options = dict[str, int]

PROMPTS = ["Once upon a time", "Il était une fois une fille", "A", "Es war einmal"]
UNBATCHED: Options = {"kv_bits": 8, "kv_group_size": 32}
STEP = 16


class Reader:
    """The other end of a request."""

    def __init__(self, number: int, bound: int = 64) -> None:
        self.number = number
        self.channel = Channel(bound, wake=lambda: None, silence=lambda: None)
        self.chunks: list[GenerationChunk] = []

    def read(self) -> list[int]:
        """Take what there is; return all tokens so far."""
        while self.channel._chunks:
            chunk = self.channel.get()
            assert chunk is not None
            self.chunks.append(chunk)
        return [chunk.token for chunk in self.chunks if chunk.token >= 0]

    @property
    def text(self) -> str:
        self.read()
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def reason(self) -> str | None:
        self.read()
        return self.chunks[-1].finish_reason if self.chunks else None


class Driven:
    """A scheduler of the demo with the shapes of its forward passes, (rows, columns), step by step."""

    def __init__(
        self, demo: Demo, monkeypatch: pytest.MonkeyPatch, *, batch_size: int = 16, tokens_limit: int | None = None
    ) -> None:
        self.model, self.tokenizer = demo
        # With weights of nothing, the limit is one of tokens in caches.
        each = bytes_per_token(self.model.config, dtype=self.model.dtype)
        budget = MemoryBudget(None if tokens_limit is None else tokens_limit * each, 0, each)
        self.scheduler = Scheduler(*demo, budget, batch_size=batch_size, prefill_step_size=STEP)
        self.passes: list[tuple[int, int]] = []
        self.fail: Callable[[mx.array], None] = lambda ids: None
        self.count = 0
        embed = HeliumModel.embed

        def counting(module: HeliumModel, ids: mx.array) -> mx.array:
            self.passes.append(rows_and_columns(ids))
            self.fail(ids)
            return embed(module, ids)

        monkeypatch.setattr(HeliumModel, "embed", counting)

    def add(self, prompt: str | list[int], *, bound: int = 64, **options: object) -> Reader:
        given = CompletionOptions(**{"ignore_eos": True, "seed": 0, **options})  # pyright: ignore[reportArgumentType]
        cache = given.make_cache(self.model) if given.unbatched else None
        reader = Reader(self.count, bound)
        self.count += 1
        request = checked_request(self.model, self.tokenizer, prompt, given, cache)
        self.scheduler.add(reader.number, request, reader.channel, cache=cache)
        return reader

    def step(self) -> list[tuple[int, int]]:
        """Take a step; return its forward passes."""
        before = len(self.passes)
        self.scheduler.step()
        return self.passes[before:]

    def finish(self, *readers: Reader) -> list[list[int]]:
        """Step until nothing is left to do, and everybody reads as it comes; return the tokens of each."""
        for _ in range(2000):
            for reader in readers:
                reader.read()
            if not self.scheduler.step() and not self.scheduler.tasks:
                return [reader.read() for reader in readers]
        raise AssertionError("it does not end")


@pytest.fixture
def driven(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> Driven:
    return Driven(demo, monkeypatch)


def alone(demo: Demo, prompt: str | list[int], **options: object) -> list[int]:
    stream = cast(Callable[..., Iterator[GenerationChunk]], helium_mlx.stream_generate)
    return [chunk.token for chunk in stream(*demo, prompt, **{"ignore_eos": True, "seed": 0, **options})]


# --- admission


def test_the_first_to_come_are_admitted_first_and_the_others_as_places_become_free(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven = Driven(demo, monkeypatch, batch_size=2)
    readers = [driven.add(prompt, max_tokens=limit) for prompt, limit in zip(PROMPTS, (2, 9, 3, 3), strict=True)]
    driven.step()
    assert len(driven.scheduler.waiting) == 2
    begun: list[int] = []
    while driven.scheduler.tasks:
        driven.step()
        assert len(driven.scheduler.tasks) - len(driven.scheduler.waiting) <= 2
        begun += [each.number for each in readers if each.read() and each.number not in begun]
    assert begun == [0, 1, 2, 3]
    assert max(rows for rows, _ in driven.passes) == 2
    assert [reader.read() for reader in readers] == [
        alone(demo, prompt, max_tokens=limit) for prompt, limit in zip(PROMPTS, (2, 9, 3, 3), strict=True)
    ]


def test_nobody_overtakes_a_request_that_waits_for_memory(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    driven = Driven(demo, monkeypatch, tokens_limit=130)
    first = driven.add([1] * 10, max_tokens=50)
    # The small one would fit beside the first.
    large, small = driven.add([1] * 10, max_tokens=85), driven.add([1, 2], max_tokens=2)
    while first.reason is None:
        driven.step()
        assert not large.read() and not small.read()
    assert list(map(len, driven.finish(large, small))) == [85, 2]


def test_rows_that_do_not_fit_beside_each_other_take_turns(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    driven = Driven(demo, monkeypatch, tokens_limit=120)
    readers = [driven.add(prompt, max_tokens=30) for prompt in PROMPTS]
    tokens = driven.finish(*readers)
    assert tokens == [alone(demo, prompt, max_tokens=30) for prompt in PROMPTS]
    assert max(rows for rows, columns in driven.passes if columns == 1) in (2, 3)


# --- slow readers


def test_a_slow_reader_is_preempted_and_comes_back_first(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    driven = Driven(demo, monkeypatch, batch_size=1)
    slow = driven.add("Once upon a time", max_tokens=12, bound=4)
    second, third = driven.add("A", max_tokens=5), driven.add("Es war einmal", max_tokens=5)
    while not driven.scheduler.preempted:
        driven.step()
    ((row, held),) = driven.scheduler.preempted.items()
    assert row.number == slow.number and held is not None
    assert len(slow.channel._chunks) == 4
    while second.reason is None:
        driven.step()
    assert len(slow.read()) == 4
    # Read by half, it comes before those who wait, and nothing is computed again.
    assert [driven.step() for _ in range(2)] == [[(1, 1)]] * 2
    assert not third.read()
    tokens = driven.finish(slow, third)
    assert tokens == [alone(demo, "Once upon a time", max_tokens=12), alone(demo, "Es war einmal", max_tokens=5)]


def test_the_cache_of_a_preempted_row_is_evicted_only_where_that_makes_room(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven = Driven(demo, monkeypatch, tokens_limit=100)
    slow = driven.add([1] * 10, max_tokens=40, bound=4)
    while not driven.scheduler.preempted:
        driven.step()
    small, large = driven.add([1] * 10, max_tokens=20), driven.add([1] * 10, max_tokens=60)
    while small.reason is None:
        driven.step()
        # While somebody runs, memory comes free by itself.
        assert list(driven.scheduler.preempted.values()) != [None]
    driven.step()
    driven.step()
    assert list(driven.scheduler.preempted.values()) == [None]
    assert list(map(len, driven.finish(slow, large))) == [40, 60]
    assert slow.read() == alone(demo, [1] * 10, max_tokens=40)


# --- cancellation


@pytest.mark.parametrize("options", [{}, UNBATCHED], ids=["batch", "unbatched"])
def test_a_cancellation_in_the_prompt_is_seen_by_the_next_step(driven: Driven, options: Options) -> None:
    reader = driven.add([1] * 100, max_tokens=4, **options)
    assert [driven.step(), driven.step()] == [[(1, STEP)]] * 2
    reader.channel.cancel()
    assert driven.step() == []
    assert (reader.reason, reader.read(), driven.scheduler.tasks) == ("cancelled", [], [])


def test_a_score_that_nobody_waits_for_ends_with_the_next_step(driven: Driven) -> None:
    tokens = [1] * 100
    run = ScoreRun(tokens, 100, driven.model, driven.tokenizer, top_logprobs=0, prefill_step_size=STEP)
    driven.scheduler.add_score(run)
    assert driven.step() == [(1, STEP)]
    run.future.cancel()
    assert driven.step() == []
    assert driven.scheduler.tasks == []


@pytest.mark.parametrize("options", [{}, UNBATCHED], ids=["batch", "unbatched"])
def test_a_cancelled_request_hands_over_the_text_that_it_held_back(
    driven: Driven, demo: Demo, options: Options
) -> None:
    whole = helium_mlx.generate(*demo, "Once upon a time", max_tokens=12, **options)  # pyright: ignore
    # Everything could be the beginning of this.
    reader = driven.add("Once upon a time", max_tokens=40, stop=whole + "§", **options)
    while len(reader.read()) < 5:
        driven.step()
    assert reader.text == ""
    reader.channel.cancel()
    driven.step()
    assert reader.reason == "cancelled"
    assert reader.text == demo[1].decode(reader.read()) != ""


# --- faults


def test_a_batch_that_fails_is_retried_row_by_row(driven: Driven, demo: Demo) -> None:
    readers = [driven.add(prompt, max_tokens=8) for prompt in PROMPTS]
    while (4, 1) not in driven.passes:
        driven.step()

    def once(ids: mx.array) -> None:
        driven.fail = lambda ids: None
        raise RuntimeError("once")

    driven.fail = once
    driven.step()
    assert list(driven.scheduler.preempted.values()) == [None] * 4
    before = len(driven.passes)
    tokens = driven.finish(*readers)
    # Each prompt is run by itself, of whatever length.
    assert [rows for rows, columns in driven.passes[before:] if columns > 1] == [1] * 4
    assert tokens == [alone(demo, prompt, max_tokens=8) for prompt in PROMPTS]


def test_a_row_that_fails_by_itself_is_ended_with_the_error_and_no_other(driven: Driven, demo: Demo) -> None:
    def culprit(ids: mx.array) -> None:
        if 1999 in cast(list[int], ids.flatten().tolist()):
            raise MemoryError("the culprit's")

    driven.fail = culprit
    readers = [driven.add(prompt, max_tokens=6) for prompt in PROMPTS]
    bad = driven.add([1, 1999], max_tokens=6)
    tokens = driven.finish(*readers)
    with pytest.raises(MemoryError, match="the culprit's"):
        bad.channel.get()
    assert tokens == [alone(demo, prompt, max_tokens=6) for prompt in PROMPTS]


def test_steps_that_always_fail_end_their_rows(driven: Driven) -> None:
    def always(ids: mx.array) -> None:
        if rows_and_columns(ids)[1] == 1:
            raise RuntimeError("again")

    driven.fail = always
    readers = [driven.add(prompt, max_tokens=6) for prompt in PROMPTS]
    driven.finish(*readers)
    for reader in readers:
        with pytest.raises(RuntimeError, match="again"):
            reader.channel.get()
    assert sum(columns == 1 for _, columns in driven.passes) <= (MAX_FAILURES + 1) * len(PROMPTS)


# --- unbatched requests


def test_prompts_of_all_kinds_take_turns_and_everybody_else_takes_a_token_in_between(driven: Driven) -> None:
    row = driven.add("A", max_tokens=60)
    early = driven.add("A", max_tokens=60, **UNBATCHED)
    while not early.read() or not row.read():
        driven.step()
    driven.add([1] * 40, max_tokens=2)
    driven.add([1] * 40, max_tokens=2, **UNBATCHED)
    score = ScoreRun([1] * 41, 41, driven.model, driven.tokenizer, top_logprobs=0, prefill_step_size=STEP)
    driven.scheduler.add_score(score)
    for _ in range(6):
        # One step of a prompt, one of the batch, one of the unbatched request.
        assert driven.step() == [(1, STEP), (1, 1), (1, 1)]
    # The unbatched prompt ends, and its second token is begun; the text is scored; the row joins the other.
    assert [driven.step() for _ in range(3)] == [
        [(1, 8), (1, 1), (1, 1), (1, 1)],
        [(1, 8), (1, 1), (1, 1)],
        [(1, 8), (2, 1), (1, 1)],
    ]
    driven.finish(row, early)
    assert score.future.result().tokens == [1] * 41


def test_unbatched_requests_give_what_they_give_alone(driven: Driven, demo: Demo) -> None:
    kinds: list[Options] = [UNBATCHED, {"max_kv_size": 24}, {"prompt_lookup": 3}, {}]
    readers = [driven.add("Once upon a time", max_tokens=40, **options) for options in kinds]
    tokens = driven.finish(*readers)
    assert tokens == [alone(demo, "Once upon a time", max_tokens=40, **options) for options in kinds]


def test_an_unbatched_request_with_a_slow_reader_holds_up_itself_alone(driven: Driven, demo: Demo) -> None:
    slow = driven.add("Once upon a time", max_tokens=12, bound=4, **UNBATCHED)
    other = driven.add("A", max_tokens=30)
    while other.reason is None:
        driven.step()
    assert not driven.scheduler.step()
    assert 3 <= len(slow.channel._chunks) <= 4
    assert driven.finish(slow) == [alone(demo, "Once upon a time", max_tokens=12, **UNBATCHED)]


# --- everybody at once


@pytest.mark.parametrize("keep", [False, True], ids=["caches evicted", "caches kept"])
def test_whom_a_pause_preempts_continues_with_the_same_tokens(driven: Driven, demo: Demo, keep: bool) -> None:
    readers = [driven.add(prompt, max_tokens=12) for prompt in PROMPTS]
    readers += [driven.add("A", max_tokens=12, **UNBATCHED), driven.add([1] * 40, max_tokens=3, **UNBATCHED)]
    for steps in range(8):
        for _ in range(steps):
            driven.step()
        driven.scheduler.preempt_all(keep_caches=keep)
        assert driven.scheduler.batch.is_empty
    tokens = driven.finish(*readers)
    assert tokens == [
        *(alone(demo, prompt, max_tokens=12) for prompt in PROMPTS),
        alone(demo, "A", max_tokens=12, **UNBATCHED),
        alone(demo, [1] * 40, max_tokens=3, **UNBATCHED),
    ]


@pytest.mark.parametrize("error", [None, ValueError("the end")])
def test_at_the_end_everybody_is_cancelled_or_told(driven: Driven, error: Exception | None) -> None:
    readers = [driven.add("A", max_tokens=50, **options) for options in ({}, UNBATCHED, {})]
    driven.step()
    readers.append(driven.add("A", max_tokens=50))
    driven.scheduler.end(error)
    assert driven.scheduler.tasks == []
    for reader in readers:
        if error is None:
            assert reader.reason == "cancelled"
        else:
            reader.read()
            with pytest.raises(ValueError, match="the end"):
                reader.channel.get()
