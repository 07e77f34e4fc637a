"""Who runs next, driven step by step: no thread, no lock, no clock."""

import random
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
        self,
        demo: Demo,
        monkeypatch: pytest.MonkeyPatch,
        *,
        batch_size: int = 16,
        tokens_limit: int | None = None,
        prefix_tokens: int = 0,
    ) -> None:
        self.model, self.tokenizer = demo
        # With weights of nothing, the limit is one of tokens in caches.
        each = bytes_per_token(self.model.config, dtype=self.model.dtype)
        budget = MemoryBudget(None if tokens_limit is None else tokens_limit * each, 0, each)
        self.scheduler = Scheduler(
            *demo,
            budget,
            batch_size=batch_size,
            prefill_step_size=STEP,
            prefix_cache_bytes=prefix_tokens * each,
        )
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
    driven.fail = failing_once(driven)
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


# --- prefixes


@pytest.fixture
def keeping(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> Driven:
    return Driven(demo, monkeypatch, prefix_tokens=10_000)


def text_of(*stretches: tuple[int, int]) -> list[int]:
    """A text of tokens of a seed each, so many."""
    return [1, *(3 + (seed * 7919 + place * (place + 3)) % 2000 for seed, count in stretches for place in range(count))]


def computed(driven: Driven, prompt: list[int]) -> tuple[int, list[int]]:
    """Run a request; return how many tokens were computed for its prompt, and what it gave."""
    before = len(driven.passes)
    reader = driven.add(prompt, max_tokens=4)
    (tokens,) = driven.finish(reader)
    count = sum(columns for _, columns in driven.passes[before:]) - 3
    assert count == len(prompt) - reader.chunks[0].cached_tokens
    assert len({chunk.cached_tokens for chunk in reader.chunks}) == 1
    return count, tokens


@pytest.mark.parametrize("length", [5, 31, 32, 33, 70])
def test_a_prompt_computes_only_what_is_new(keeping: Driven, demo: Demo, length: int) -> None:
    text = text_of((1, length))
    edited = [*text[: length // 2], 77, *text[length // 2 + 1 :], 5, 6]
    for prompt, new in (
        (text, len(text)),
        ([*text, 9], 1),
        (text, 1),
        (text[:-1], 1),
        (edited, len(edited) - length // 2),
        ([*edited, 7, 8, 9], 3),
        ([5, *text[1:]], len(text)),
    ):
        assert computed(keeping, prompt) == (new, alone(demo, prompt, max_tokens=4)), prompt


def test_a_completion_that_is_taken_over_is_not_computed_again(keeping: Driven, demo: Demo) -> None:
    prompt = text_of((1, 40))
    _, tokens = computed(keeping, prompt)
    # Its last token was never run.
    assert computed(keeping, [*prompt, *tokens]) == (1, alone(demo, [*prompt, *tokens], max_tokens=4))
    assert computed(keeping, [*prompt, *tokens[:2], 9])[0] == 1
    eos = driven_to_eos(keeping, prompt)
    assert computed(keeping, [*prompt, *eos])[0] == 1


def driven_to_eos(driven: Driven, prompt: list[int]) -> list[int]:
    """Run a request that ends before its length; return its tokens."""
    token = alone((driven.model, driven.tokenizer), prompt, max_tokens=6)[4]
    reader = driven.add(prompt, max_tokens=50, extra_eos=token)
    (tokens,) = driven.finish(reader)
    assert reader.reason == "eos"
    return tokens


def test_what_a_cancelled_request_has_computed_is_kept(keeping: Driven) -> None:
    in_prompt = keeping.add(text_of((1, 5 * STEP)), max_tokens=4)
    keeping.step()
    keeping.step()
    in_prompt.channel.cancel()
    keeping.finish(in_prompt)
    assert computed(keeping, text_of((1, 5 * STEP)))[0] == 3 * STEP + 1
    decoding = keeping.add(text_of((2, 40)), max_tokens=50)
    while len(decoding.read()) < 6:
        keeping.step()
    decoding.channel.cancel()
    keeping.finish(decoding)
    assert computed(keeping, [*text_of((2, 40)), *decoding.read()])[0] == 1


def test_who_begins_like_a_prompt_on_its_way_waits_for_it(keeping: Driven, demo: Demo) -> None:
    beginning = text_of((1, 100))
    prompts = [[*beginning, 5, 6, 7, place] for place in range(10, 14)] + [text_of((2, 10))]
    readers = [keeping.add(prompt, max_tokens=3) for prompt in prompts]
    keeping.step()
    assert len(keeping.scheduler.deferred) == 3
    tokens, passes = keeping.finish(*readers), list(keeping.passes)
    assert tokens == [alone(demo, prompt, max_tokens=3) for prompt in prompts]
    # Once the first is through, those who waited run together.
    assert [shape for shape in passes if shape[1] > 1] == [(1, STEP), (1, 11), *[(1, STEP)] * 5, (1, 9)]
    assert [reader.chunks[0].cached_tokens for reader in readers] == [0, 104, 104, 104, 0]
    assert (3, 1) in passes


def test_who_waited_for_one_that_ends_goes_on_from_there(keeping: Driven, demo: Demo) -> None:
    text = text_of((1, 8 * STEP))
    first, second = keeping.add(text, max_tokens=3), keeping.add(text, max_tokens=3)
    for _ in range(4):
        keeping.step()
    assert len(keeping.scheduler.deferred) == 1
    first.channel.cancel()
    before = len(keeping.passes)
    (tokens,), passes = keeping.finish(second), keeping.passes[before:]
    assert tokens == alone(demo, text, max_tokens=3)
    assert passes == [*[(1, STEP)] * 4, (1, 1), (1, 1), (1, 1)]
    assert second.chunks[0].cached_tokens == 4 * STEP


@pytest.mark.parametrize("end", ["cancel", "pause", "end"])
def test_who_waits_for_a_beginning_can_be_ended(keeping: Driven, demo: Demo, end: str) -> None:
    text = text_of((1, 8 * STEP))
    first, second = keeping.add(text, max_tokens=3), keeping.add(text, max_tokens=3)
    keeping.step()
    assert [row.number for row in keeping.scheduler.deferred] == [second.number]
    if end == "cancel":
        second.channel.cancel()
        keeping.step()
    elif end == "pause":
        keeping.scheduler.preempt_all(keep_caches=False)
    else:
        keeping.scheduler.end(None)
    assert not keeping.scheduler.deferred
    tokens = keeping.finish(first, second)
    whole = alone(demo, text, max_tokens=3)
    assert tokens == {"cancel": [whole, []], "pause": [whole, whole], "end": [[], []]}[end]


def test_prefixes_take_what_is_allowed_and_no_more(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    driven = Driven(demo, monkeypatch, prefix_tokens=100)
    tree = driven.scheduler.prefixes
    for seed in range(12):
        computed(driven, text_of((seed % 5, 15 * (seed % 4) + 10)))
        blocks = [node.block for node in tree._parents]
        assert sum(block.nbytes for block in blocks) == tree.nbytes <= 100 * tree.bytes_per_token
    assert tree.nbytes > 60 * tree.bytes_per_token
    assert driven.scheduler.budget.bytes_per_token == tree.bytes_per_token


def test_requests_come_before_prefixes(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    driven = Driven(demo, monkeypatch, tokens_limit=150, prefix_tokens=10_000)
    tree = driven.scheduler.prefixes
    for seed in range(4):
        computed(driven, text_of((seed, 40)))
    assert tree.nbytes > 70 * tree.bytes_per_token
    reader = driven.add(text_of((9, 29)), max_tokens=110)
    while not reader.reason:
        driven.step()
        reader.read()
        assert tree.nbytes <= 10 * tree.bytes_per_token
    assert reader.read() == alone(demo, text_of((9, 29)), max_tokens=110)


def test_without_prefixes_everything_is_computed(driven: Driven) -> None:
    prompt = text_of((1, 40))
    assert [computed(driven, prompt)[0] for _ in range(2)] == [41, 41]
    readers = [driven.add(text_of((1, 4)), max_tokens=2) for _ in range(3)]
    driven.step()
    assert driven.passes[-2][0] == 3
    driven.finish(*readers)
    assert driven.scheduler.prefixes.nbytes == 0


def test_a_row_that_is_retried_trusts_nothing_that_was_kept(keeping: Driven, demo: Demo) -> None:
    prompt = text_of((1, 12))
    computed(keeping, prompt)
    readers = [keeping.add(prompt, max_tokens=8), keeping.add(prompt[:9], max_tokens=8)]
    while (2, 1) not in keeping.passes[-1:]:
        keeping.step()
    keeping.fail = failing_once(keeping)
    keeping.step()
    before = len(keeping.passes)
    tokens, passes = keeping.finish(*readers), keeping.passes[before:]
    assert tokens == [alone(demo, prompt, max_tokens=8), alone(demo, prompt[:9], max_tokens=8)]
    first, second = (columns for _, columns in passes if columns > 1)
    assert first >= 13 and second >= 9


def test_numbers_that_are_none_leave_nothing_kept(keeping: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = text_of((1, 40))
    computed(keeping, prompt)
    next_logits = HeliumForCausalLM.next_logits
    with monkeypatch.context() as patch:
        patch.setattr(HeliumForCausalLM, "next_logits", lambda *given: next_logits(*given) * mx.nan)
        reader = keeping.add([*prompt, 5], max_tokens=4)
        keeping.finish()
        with pytest.raises(helium_mlx.GenerationError, match="logits are NaN"):
            reader.channel.get()
    assert keeping.scheduler.prefixes.nbytes == 0
    assert computed(keeping, prompt)[0] == 41


def test_a_pause_lets_go_of_prefixes_unless_caches_are_kept_and_the_end_always_does(keeping: Driven) -> None:
    prompt = text_of((1, 40))
    computed(keeping, prompt)
    keeping.scheduler.preempt_all(keep_caches=True)
    assert computed(keeping, prompt)[0] == 1
    keeping.scheduler.preempt_all(keep_caches=False)
    assert keeping.scheduler.prefixes.nbytes == 0
    assert computed(keeping, prompt)[0] == 41
    keeping.scheduler.end(None)
    assert keeping.scheduler.prefixes.nbytes == 0


@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_together_is_as_alone(demo: Demo, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    draw = random.Random(seed)
    driven = Driven(demo, monkeypatch, batch_size=5, tokens_limit=600, prefix_tokens=draw.choice([70, 200, 400]))
    budget, tree = driven.scheduler.budget, driven.scheduler.prefixes
    prompts: list[list[int]] = []
    for _ in range(24):
        begun = draw.choice(prompts)[: draw.randrange(1, 120)] if prompts and draw.random() < 0.8 else [1]
        prompts.append([*begun, *(draw.randrange(4, 2000) for _ in range(draw.choice([0, 1, 2, 30, 70])))])
    options = [{"max_tokens": draw.randrange(1, 20)} for _ in prompts]
    options = [{**each, "heal": draw.random() < 0.5} for each in options]
    expected = [alone(demo, prompt, **each) for prompt, each in zip(prompts, options, strict=True)]
    readers: list[Reader] = []
    cancelled: set[int] = set()
    while len(readers) < len(prompts) or driven.scheduler.tasks:
        if len(readers) < len(prompts) and draw.random() < 0.5:
            readers.append(driven.add(prompts[len(readers)], bound=4, **options[len(readers)]))
        if readers and draw.random() < 0.1:
            cancelled.add(draw.choice(readers).number)
            readers[max(cancelled)].channel.cancel()
        if draw.random() < 0.02:
            driven.scheduler.preempt_all(keep_caches=draw.random() < 0.5)
        if draw.random() < 0.02:
            driven.fail = failing_once(driven)
        driven.scheduler.step()
        assert budget.allows(driven.scheduler._needed(None, []) + tree.nbytes)
        assert sum(node.block.nbytes for node in tree._parents) == tree.nbytes
        for reader in readers:
            if draw.random() < 0.3:
                reader.read()
    for reader, tokens in zip(readers, expected, strict=True):
        read = reader.read()
        assert read == tokens[: len(read)]
        assert len(read) == len(tokens) or reader.number in cancelled
    assert any(reader.chunks and reader.chunks[0].cached_tokens > 20 for reader in readers)


def failing_once(driven: Driven) -> Callable[[mx.array], None]:
    """A failure of the next pass over several rows, and of no other."""

    def fail(ids: mx.array) -> None:
        if ids.shape[0] > 1:
            driven.fail = lambda ids: None
            raise RuntimeError("once")

    return fail


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
