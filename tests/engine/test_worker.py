"""What the worker does with faults, slow readers, long prompts, and while it is paused."""

import gc
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest
from passes import rows_and_columns
from waiting import LONGEST_WAIT, wait_for

import helium_mlx
from helium_mlx import CheckpointError, EngineError, HeliumEngine
from helium_mlx.engine.scheduler import PromptJob, Scheduler
from helium_mlx.engine.stream import EngineStream
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.generation.sampling import Sampler
from helium_mlx.model.helium import HeliumForCausalLM, HeliumModel
from helium_mlx.tokenizer.detokenizer import ByteFallbackDetokenizer
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]

PROMPTS = ["Once upon a time", "Il était une fois une fille", "A", "Es war einmal"]


@pytest.fixture
def engine() -> Iterator[HeliumEngine]:
    with HeliumEngine("demo", dtype="float32", prefill_step_size=16) as engine:
        yield engine


def alone(demo: Demo, prompt: object, **options: object) -> str:
    return cast(Callable[..., str], helium_mlx.generate)(*demo, prompt, **options)


def active_memory() -> int:
    gc.collect()
    mx.synchronize()
    return mx.get_active_memory()


def start(engine: HeliumEngine, requests: list[tuple[object, dict[str, object]]]) -> list[EngineStream]:
    """Queue requests while the engine is paused, so that they start together."""
    engine.pause()
    stream = cast(Callable[..., EngineStream], engine.stream)
    streams = [stream(prompt, **options) for prompt, options in requests]
    engine.resume()
    return streams


def go_round(engine: HeliumEngine, times: int) -> None:
    """Have the worker go through its loop so many times, whether it has something to do or not."""
    scheduler = engine._worker.scheduler
    drop_cancelled = scheduler.drop_cancelled
    # The first that is seen may have begun before.
    for _ in range(times + 1):
        seen = threading.Event()
        scheduler.drop_cancelled = lambda seen=seen: (drop_cancelled(), seen.set())[0]
        engine._worker.wake()
        assert seen.wait(LONGEST_WAIT)
    scheduler.drop_cancelled = drop_cancelled


class Passes:
    """The rows and columns of each forward pass; `fail` may raise in one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: Callable[[mx.array], None] = lambda ids: None) -> None:
        self.shapes: list[tuple[int, int]] = []
        embed = HeliumModel.embed

        def counting(module: HeliumModel, ids: mx.array) -> mx.array:
            self.shapes.append(rows_and_columns(ids))
            fail(ids)
            return embed(module, ids)

        monkeypatch.setattr(HeliumModel, "embed", counting)


# --- faults


def test_a_sampler_that_raises_ends_its_request_only(
    engine: HeliumEngine, demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Sampler.draw

    def poisoned(self: Sampler, logits: mx.array) -> mx.array:
        if self.options.seed == 666 and self.drawn == 3:
            raise ZeroDivisionError("a sampler's own")
        return draw(self, logits)

    texts = [alone(demo, prompt, max_tokens=9, temperature=1.0, seed=5) for prompt in PROMPTS]
    monkeypatch.setattr(Sampler, "draw", poisoned)
    asked: list[tuple[object, dict[str, object]]] = [
        (prompt, {"max_tokens": 9, "temperature": 1.0, "seed": 5}) for prompt in PROMPTS
    ]
    asked.insert(1, ("A", {"max_tokens": 9, "temperature": 1.0, "seed": 666}))
    streams = start(engine, asked)
    poison = streams.pop(1)
    # The fourth token is begun before the third is read.
    read = [next(poison).generated_tokens for _ in range(2)]
    with pytest.raises(ZeroDivisionError, match="a sampler's own"):
        next(poison)
    assert read == [1, 2]
    assert [stream.result().text for stream in streams] == texts
    assert engine.complete("A", max_tokens=3) == alone(demo, "A", max_tokens=3)


def test_a_text_that_cannot_be_made_ends_its_request_only(
    engine: HeliumEngine, demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_token, text = ByteFallbackDetokenizer.add_token, alone(demo, "Il", max_tokens=9)
    (bad,) = [chunk.token for chunk in helium_mlx.stream_generate(*demo, "Once upon a time", max_tokens=2)][1:]

    def broken(self: ByteFallbackDetokenizer, token: int) -> str:
        if token == bad:
            raise KeyError(token)
        return add_token(self, token)

    monkeypatch.setattr(ByteFallbackDetokenizer, "add_token", broken)
    broken_stream, other = start(engine, [("Once upon a time", {"max_tokens": 5}), ("Il", {"max_tokens": 9})])
    with pytest.raises(KeyError):
        broken_stream.result()
    assert other.result().text == text


def test_a_step_that_fails_once_changes_nothing(
    engine: HeliumEngine, demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    def fail(ids: mx.array) -> None:
        nonlocal steps
        steps += rows_and_columns(ids) == (4, 1)
        if rows_and_columns(ids) == (4, 1) and steps == 3:
            raise RuntimeError("once")

    options: dict[str, object] = {"max_tokens": 10, "temperature": 0.8, "seed": 3, "repetition_penalty": 1.2}
    texts = [alone(demo, prompt, **options) for prompt in PROMPTS]
    Passes(monkeypatch, fail)
    streams = start(engine, [(prompt, options) for prompt in PROMPTS])
    assert [stream.result().text for stream in streams] == texts
    assert steps > 3


def test_of_a_batch_only_the_row_fails_that_fails_by_itself(
    engine: HeliumEngine, demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [alone(demo, prompt, max_tokens=8) for prompt in PROMPTS]

    def fail(ids: mx.array) -> None:
        # Once there are more tokens of it than a step takes, a row's prompt is not in one pass any more.
        if 1999 in cast(list[int], ids.flatten().tolist()):
            raise MemoryError("the culprit's")

    Passes(monkeypatch, fail)
    *streams, culprit = start(engine, [*((prompt, {"max_tokens": 8}) for prompt in PROMPTS), ([1, 1999], {})])
    with pytest.raises(MemoryError, match="the culprit's"):
        culprit.result()
    assert [stream.result().text for stream in streams] == texts


def test_steps_that_go_on_failing_end_their_rows_and_leave_the_engine_serving(
    engine: HeliumEngine, demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = alone(demo, "A", max_tokens=5)

    def fail(ids: mx.array) -> None:
        if rows_and_columns(ids)[1] == 1:
            raise RuntimeError("again")

    with monkeypatch.context() as patch:
        passes = Passes(patch, fail)
        for stream in start(engine, [(prompt, {"max_tokens": 6}) for prompt in PROMPTS]):
            with pytest.raises(RuntimeError, match="again"):
                stream.result()
    assert sum(columns == 1 for _, columns in passes.shapes) <= 4 * len(PROMPTS)
    assert engine.complete("A", max_tokens=5) == text


def test_a_dead_worker_is_reported_to_everybody(engine: HeliumEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.pause()
    streams = [engine.stream("A", max_tokens=5), engine.stream("A", max_tokens=5, kv_bits=8, kv_group_size=32)]
    scored = engine._queue_score("Es war einmal", 0)

    def die(self: Scheduler) -> bool:
        raise SystemExit("a bug")

    monkeypatch.setattr(Scheduler, "step", die)
    engine.resume()
    said = "the engine's worker has died: SystemExit: a bug; make a new engine"
    for wait in (*(stream.result for stream in streams), scored.result, lambda: engine.stream("A"), engine.pause):
        with pytest.raises(EngineError, match=said):
            wait()
    engine.close()


def test_nothing_waits_for_the_garbage_collector(engine: HeliumEngine, demo: Demo) -> None:
    def end(**options: object) -> None:
        stream = cast(Callable[..., EngineStream], engine.stream)
        stream("Once upon a time", max_tokens=30, **options).result()
        part = stream("Once upon a time", max_tokens=300, **options)
        next(part)
        part.close()
        part.result()

    gc.collect()
    gc.disable()
    try:
        end()
        engine._worker.call(mx.synchronize).result()
        before = mx.get_active_memory()
        for options in ({}, {"kv_bits": 8, "kv_group_size": 32}, {"prompt_lookup": 4}, {"repetition_penalty": 1.2}):
            end(**options)
            engine.score("Es war einmal eine Frau")
        engine._worker.call(mx.synchronize).result()
        assert mx.get_active_memory() <= before + 20_000
    finally:
        gc.enable()


# --- scheduling


def test_others_decode_between_the_steps_of_a_long_prompt(
    engine: HeliumEngine, demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for own in ({}, {"kv_bits": 8, "kv_group_size": 32}):
        with monkeypatch.context() as patch:
            passes = Passes(patch)
            reader = engine.stream("A", max_tokens=400, ignore_eos=True)
            next(reader)
            # Nothing of it is known from the other.
            long = cast(Callable[..., EngineStream], engine.stream)([5] * 160, max_tokens=1, **own)
            long.result()
            reader.close()
        steps = [place for place, shape in enumerate(passes.shapes) if shape == (1, 16)]
        assert len(steps) == 10
        for place in steps[1:]:
            assert passes.shapes[place - 1] == (1, 1)


def test_everybody_continues_while_an_unbatched_request_is_in_its_prompt(
    engine: HeliumEngine, demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    own: dict[str, object] = {"kv_bits": 8, "kv_group_size": 32}
    stream = cast(Callable[..., EngineStream], engine.stream)
    reader, other = (stream("A", max_tokens=400, ignore_eos=True, **own) for _ in range(2))
    next(reader)
    next(other)
    embed, asked = HeliumModel.embed, list[EngineStream]()
    passes: list[tuple[int, int]] = []

    def embedding(module: HeliumModel, ids: mx.array) -> mx.array:
        passes.append(rows_and_columns(ids))
        if passes.count((1, 16)) == 3 and not asked:
            other.cancel()
            asked.append(stream([1, 5], max_tokens=3, ignore_eos=True))
        return embed(module, ids)

    monkeypatch.setattr(HeliumModel, "embed", embedding)
    long = stream([1] * 160, max_tokens=1, **own)
    long.result()
    reader.close()
    third, last = [place for place, shape in enumerate(passes) if shape == (1, 16)][2::7]
    # One step of both readers at most after the cancellation; the new request begins and ends.
    assert passes[third + 1 : third + 5].count((1, 2)) == 1
    assert asked[0].result().generated_tokens == 3
    assert other.result().finish_reason == "cancelled"
    assert sum(shape == (1, 1) for shape in passes[third:last]) <= 7 * 1 + 2 + 1


def test_a_text_is_scored_between_the_steps_of_others(engine: HeliumEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(monkeypatch)
    reader = engine.stream("A", max_tokens=400, ignore_eos=True)
    next(reader)
    engine.score([1] * 161)
    reader.close()
    steps = [place for place, shape in enumerate(passes.shapes) if shape == (1, 16)]
    assert len(steps) == 10
    assert all(passes.shapes[place - 1] == (1, 1) for place in steps[1:])


@pytest.mark.parametrize("own", [{}, {"kv_bits": 8, "kv_group_size": 32}], ids=["batch", "unbatched"])
def test_a_slow_reader_holds_up_itself_alone(demo: Demo, own: dict[str, object]) -> None:
    with HeliumEngine("demo", dtype="float32", buffer=4, batch_size=1) as engine:
        options: dict[str, object] = {"max_tokens": 40, "ignore_eos": True, **own}
        slow = cast(Callable[..., EngineStream], engine.stream)("Once upon a time", **options)
        wait_for(lambda: slow._channel.is_full)
        if not own:
            # With a place for one, it leaves that to others.
            assert engine.complete("A", max_tokens=12) == alone(demo, "A", max_tokens=12)
        go_round(engine, 10)
        assert 3 <= len(slow._channel._chunks) <= 4
        read = []
        for chunk in slow:
            read.append(chunk.text)
            assert len(slow._channel._chunks) <= 4
        assert "".join(read) == alone(demo, "Once upon a time", **options)


# --- memory


def test_what_does_not_fit_alone_is_refused_with_the_figures(demo: Demo) -> None:
    weights = sum(tensor.nbytes for tensor in demo[0].tensors().values())
    each = helium_mlx.kv_cache.memory.bytes_per_token(demo[0].config, dtype=mx.float32)  # pyright: ignore
    limit = weights + 100 * each
    with HeliumEngine("demo", dtype="float32", memory_limit=limit) as engine:
        with pytest.raises(helium_mlx.EngineMemoryError) as refused:
            engine.stream([1] * 20, max_tokens=81)
        for figure in (f"{101 * each:,}", "101 tokens", f"{weights:,}", f"{limit:,}"):
            assert figure in str(refused.value)
        with pytest.raises(helium_mlx.EngineMemoryError):
            engine.score([1] * 101)
        with pytest.raises(helium_mlx.EngineMemoryError):
            engine.stream([1] * 20, max_tokens=500, kv_bits=8, kv_group_size=32)
        assert engine.stream([1] * 20, max_tokens=80, ignore_eos=True).result().generated_tokens == 80


def test_weights_over_the_limit_are_refused_before_they_are_read(demo: Demo) -> None:
    before = active_memory()
    mx.reset_peak_memory()
    weights = sum(tensor.nbytes for tensor in demo[0].tensors().values())
    with pytest.raises(helium_mlx.EngineMemoryError, match=f"the weights take {weights:,} bytes"):
        HeliumEngine("demo", dtype="float32", memory_limit=weights - 1)
    assert mx.get_peak_memory() <= before + 10_000
    HeliumEngine("demo", dtype="float32", memory_limit=weights).close()


def test_what_does_not_fit_beside_the_others_waits_for_them(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = sum(tensor.nbytes for tensor in demo[0].tensors().values())
    each = helium_mlx.kv_cache.memory.bytes_per_token(demo[0].config, dtype=mx.float32)  # pyright: ignore
    texts = [alone(demo, prompt, max_tokens=30, ignore_eos=True) for prompt in PROMPTS * 2]
    with HeliumEngine("demo", dtype="float32", memory_limit=weights + 150 * each) as engine:
        passes = Passes(monkeypatch)
        asked: list[tuple[object, dict[str, object]]] = [
            (prompt, {"max_tokens": 30, "ignore_eos": True}) for prompt in PROMPTS * 2
        ]
        streams = start(engine, asked)
        assert [stream.result().text for stream in streams] == texts
    assert max(rows for rows, _ in passes.shapes) in (2, 3)


def test_what_is_held_stays_below_what_was_counted(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    each = helium_mlx.kv_cache.memory.bytes_per_token(demo[0].config, dtype=mx.float32)  # pyright: ignore
    weights = sum(tensor.nbytes for tensor in demo[0].tensors().values())
    held, step = [0], Scheduler.step

    def measured(self: Scheduler) -> bool:
        worked = step(self)
        layers = [*self.batch._layers]
        layers += [layer for run in {id(each.layers): each.layers for each in self.prefilled}.values() for layer in run]
        layers += [layer for job in self.prompts if isinstance(job, PromptJob) for layer in job.run.layers]
        layers += [layer for each in self.preempted.values() if each for layer in each.layers]
        held.append(sum(layer.nbytes for layer in layers) + self.prefixes.nbytes)
        return worked

    monkeypatch.setattr(Scheduler, "step", measured)
    with HeliumEngine("demo", dtype="float32", memory_limit=weights + 600 * each, buffer=4) as engine:
        stream = cast(Callable[..., EngineStream], engine.stream)
        stuck = stream("Once upon a time", max_tokens=150, ignore_eos=True)
        streams = [
            stream([1] * (3 + 37 * (place % 4)), max_tokens=8 + 29 * (place % 3), ignore_eos=True)
            for place in range(14)
        ]
        for each_stream in streams:
            each_stream.result()
        stuck.result()
    assert 300 * each < max(held) <= 600 * each


def test_memory_is_flat_once_prefixes_have_reached_their_limit(demo: Demo) -> None:
    each = helium_mlx.kv_cache.memory.bytes_per_token(demo[0].config, dtype=mx.float32)  # pyright: ignore
    before = active_memory()
    with HeliumEngine("demo", dtype="float32", prefix_cache_bytes=100 * each) as engine:
        engine.complete([1, 5], max_tokens=2)
        engine.pause()
        engine.resume()
        loaded, samples = active_memory(), []
        for number in range(60):
            engine.stream(
                [1, *range(10 + number, 70 + 2 * number)], max_tokens=1 + number % 7, ignore_eos=True
            ).result()
            if number % 10 == 9:
                # Between two steps, and after the one in which the last row left.
                go_round(engine, 3)
                samples.append(active_memory() - loaded)
        # A node has 32 tokens at most, and the last may not fit.
        assert all(60 * each < sample < 100 * each + 50_000 for sample in samples)
    assert active_memory() <= before + 10_000


def test_a_stuck_reader_gives_its_cache_up_to_those_who_need_the_memory(demo: Demo) -> None:
    weights = sum(tensor.nbytes for tensor in demo[0].tensors().values())
    each = helium_mlx.kv_cache.memory.bytes_per_token(demo[0].config, dtype=mx.float32)  # pyright: ignore
    text = alone(demo, "A", max_tokens=60, ignore_eos=True)
    with HeliumEngine("demo", dtype="float32", memory_limit=weights + 65 * each, buffer=4) as engine:
        stuck = engine.stream("A", max_tokens=60, ignore_eos=True)
        for _ in range(3):
            for _ in range(15):
                next(stuck)
            wait_for(lambda: stuck._channel.is_full)
            assert engine.complete("A", max_tokens=60, ignore_eos=True) == text
        assert stuck.result().text == text


def test_a_slow_readers_cache_is_kept_while_others_run_who_will_free_memory(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(tensor.nbytes for tensor in demo[0].tensors().values())
    each = helium_mlx.kv_cache.memory.bytes_per_token(demo[0].config, dtype=mx.float32)  # pyright: ignore
    limits = {"memory_limit": weights + 200 * each, "prefix_cache_bytes": 0}
    with HeliumEngine("demo", dtype="float32", **limits) as engine:
        passes = Passes(monkeypatch)
        slow = engine.stream([1] * 20, max_tokens=80, ignore_eos=True)
        wait_for(lambda: slow._channel.is_full)
        engine.pause(keep_caches=True)
        # One fits beside the slow reader's cache, and both together do not.
        others = [engine.stream([1] * 20, max_tokens=60, ignore_eos=True) for _ in range(2)]
        engine.resume()
        assert [len(other.result().tokens) for other in others] == [60, 60]
        slow.result()
    assert [shape for shape in passes.shapes if shape[1] > 1] == [(1, 20)] * 3


# --- pause and resume


@pytest.mark.parametrize("keep", [False, True], ids=["caches freed", "caches kept"])
def test_a_pause_frees_memory_and_changes_no_token(demo: Demo, keep: bool) -> None:
    options: list[dict[str, object]] = [
        {"max_tokens": 60, "ignore_eos": True},
        {"max_tokens": 60, "temperature": 0.9, "seed": 4, "repetition_penalty": 1.2, "ignore_eos": True},
        {"max_tokens": 60, "kv_bits": 8, "kv_group_size": 32, "ignore_eos": True},
    ]
    texts = [alone(demo, "Once upon a time", **each) for each in options]
    before = active_memory()
    with HeliumEngine("demo", dtype="float32", prefill_step_size=16) as engine:
        loaded = mx.get_active_memory() - before
        assert loaded > 7_000_000
        stream = cast(Callable[..., EngineStream], engine.stream)
        streams = [stream("Once upon a time", **each) for each in options]
        for each in streams:
            next(each)
        engine.pause(keep_caches=keep)
        assert engine.is_paused
        held = mx.get_active_memory() - before
        # Two rows of some dozens of tokens at 6 KB, and the quantized one.
        assert held < (2_000_000 if keep else 500_000)
        assert mx.get_cache_memory() == 0
        late = engine.stream("A", max_tokens=4)
        engine.pause()
        engine.resume()
        engine.resume()
        assert not engine.is_paused
        assert [each.result().text for each in streams] == texts
        assert late.result().text == alone(demo, "A", max_tokens=4)
    assert active_memory() <= before + 10_000


@pytest.mark.parametrize("keep_caches", [False, True])
def test_a_pause_in_the_middle_of_prompts_changes_nothing(
    engine: HeliumEngine, demo: Demo, monkeypatch: pytest.MonkeyPatch, keep_caches: bool
) -> None:
    texts = [alone(demo, prompt * 4, max_tokens=6) for prompt in PROMPTS]
    score = helium_mlx.score(*demo, "Es war einmal " * 12, prefill_step_size=16)
    worker = engine._worker
    due: dict[int, Future[Future[None]]] = {}

    def pause(ids: mx.array) -> None:
        # Asked for in a pass, it comes after the step that this pass belongs to.
        paused = due.pop(len(passes.shapes), None)
        if paused is not None:
            paused.set_result(worker.call(lambda: worker.pause(keep_caches=keep_caches)))

    passes = Passes(monkeypatch, pause)
    for moment in (1, 2, 4, 7, 10):
        paused = due[moment] = Future()
        engine.pause()
        passes.shapes.clear()
        streams = [engine.stream(prompt * 4, max_tokens=6) for prompt in PROMPTS]
        scored = engine._queue_score("Es war einmal " * 12, 0)
        engine.resume()
        paused.result().result()
        assert moment <= len(passes.shapes) < 16
        engine.resume()
        assert [stream.result().text for stream in streams] == texts
        assert scored.result() == score


class InPrompt:
    """A prompt of 160 tokens of an unbatched request, held in its third step of ten, and before its fourth."""

    def __init__(self, engine: HeliumEngine, monkeypatch: pytest.MonkeyPatch, **own: object) -> None:
        self.steps = 0
        self._inbox, self._patch = engine._worker._inbox, monkeypatch
        self._reached, self._go_on, self._through = (threading.Event() for _ in range(3))
        embed = HeliumModel.embed

        def embedding(module: HeliumModel, ids: mx.array) -> mx.array:
            if rows_and_columns(ids) == (1, 16):
                assert self.steps != 3 or self._through.wait(LONGEST_WAIT)
                self.steps += 1
            if self.steps == 3:
                self._reached.set()
                assert self._go_on.wait(LONGEST_WAIT)
            return embed(module, ids)

        monkeypatch.setattr(HeliumModel, "embed", embedding)
        self.stream = cast(Callable[..., EngineStream], engine.stream)([1] * 161, max_tokens=4, ignore_eos=True, **own)
        assert self._reached.wait(LONGEST_WAIT)

    def steps_within(self, call: Callable[[], object]) -> int:
        """Return how many steps the prompt has run when a call is through that the worker got in the third."""
        put = self._inbox.put

        def putting(function: Callable[[], object], *, queues: bool = False) -> object:
            future = put(function, queues=queues)
            self._go_on.set()
            return future

        self._patch.setattr(self._inbox, "put", putting)
        call()
        steps = self.steps
        self._through.set()
        return steps


OWN: dict[str, dict[str, object]] = {
    "kv_bits": {"kv_bits": 8, "kv_group_size": 32},
    "max_kv_size": {"max_kv_size": 64},
    "prompt_lookup": {"prompt_lookup": 3},
}


@pytest.mark.parametrize("own", OWN.values(), ids=OWN)
def test_a_pause_takes_a_step_in_the_prompt_of_an_unbatched_request(
    engine: HeliumEngine, demo: Demo, monkeypatch: pytest.MonkeyPatch, own: dict[str, object]
) -> None:
    text = alone(demo, [1] * 161, max_tokens=4, ignore_eos=True, prefill_step_size=16, **own)
    other_text = alone(demo, "A", max_tokens=90, ignore_eos=True, **own)
    other = cast(Callable[..., EngineStream], engine.stream)("A", max_tokens=90, ignore_eos=True, **own)
    next(other)
    held = mx.get_active_memory()
    prompt = InPrompt(engine, monkeypatch, **own)
    assert prompt.steps_within(engine.pause) == 3
    assert engine.is_paused
    assert mx.get_active_memory() < held - 6_000_000
    go_round(engine, 10)
    assert prompt.steps == 3
    late = engine.stream("A", max_tokens=4)
    engine.resume()
    assert prompt.stream.result().text == text
    assert late.result().text == alone(demo, "A", max_tokens=4)
    assert other.result().text == other_text


def test_a_state_is_written_and_taken_up_within_a_step_of_such_a_prompt(
    engine: HeliumEngine, demo: Demo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = engine.stream("A", max_tokens=90, ignore_eos=True)
    next(other)
    with monkeypatch.context() as patch:
        prompt = InPrompt(engine, patch, **OWN["kv_bits"])
        assert prompt.steps_within(lambda: other.save(tmp_path / "state")) == 3
        prompt.stream.close()
    with monkeypatch.context() as patch:
        prompt = InPrompt(engine, patch, **OWN["kv_bits"])
        assert prompt.steps_within(lambda: engine.continue_stream(tmp_path / "state").close()) == 3
        prompt.stream.close()


@pytest.mark.parametrize("end", ["cancel", "close", "drop", "close engine"])
def test_what_is_paused_in_such_a_prompt_can_be_ended(
    engine: HeliumEngine, demo: Demo, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    stream = cast(Callable[..., EngineStream], engine.stream)
    neighbour = stream("A", max_tokens=90, ignore_eos=True, **OWN["kv_bits"])
    next(neighbour)
    prompt = InPrompt(engine, monkeypatch, **OWN["kv_bits"])
    behind = stream([1] * 40, max_tokens=4, ignore_eos=True, **OWN["kv_bits"])
    prompt.steps_within(engine.pause)
    if end == "close engine":
        engine.close()
        for each in (prompt.stream, neighbour, behind):
            assert each.result().finish_reason == "cancelled"
        return
    if end == "drop":
        del prompt.stream
    else:
        getattr(prompt.stream, end)()
        assert prompt.stream.result().finish_reason == "cancelled"
    wait_for(lambda: engine._worker.call(lambda: len(engine._worker.scheduler.tasks)).result() == 2)
    assert engine.is_paused and prompt.steps == 3
    engine.resume()
    assert behind.result().text == alone(demo, [1] * 40, max_tokens=4, ignore_eos=True, **OWN["kv_bits"])
    assert neighbour.result().text == alone(demo, "A", max_tokens=90, ignore_eos=True, **OWN["kv_bits"])


def test_a_paused_engine_cancels_and_closes(engine: HeliumEngine) -> None:
    streams = [
        engine.stream("A", max_tokens=3000, ignore_eos=True),
        engine.stream("A", max_tokens=3000, ignore_eos=True, kv_bits=8, kv_group_size=32),
        engine.stream("B", max_tokens=3000, ignore_eos=True),
    ]
    for stream in streams:
        next(stream)
    engine.pause()
    for stream in streams[:2]:
        stream.cancel()
        assert stream.result().finish_reason == "cancelled"
    engine.close()
    assert streams[2].result().finish_reason == "cancelled"


def test_weights_that_are_gone_or_changed_are_not_resumed_with(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DEMO_DIRECTORY, folder)
    with HeliumEngine(folder, dtype="float32") as engine:
        text = engine.complete("A", max_tokens=5)
        engine.pause()
        (folder / "model.safetensors").rename(tmp_path / "away")
        with pytest.raises(CheckpointError):
            engine.resume()
        tensors = cast("dict[str, mx.array]", mx.load(str(tmp_path / "away"), format="safetensors"))
        changed = {name: tensor * 1.5 for name, tensor in tensors.items()}
        mx.save_safetensors(str(folder / "model.safetensors"), changed, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match="was changed while the engine was paused"):
            engine.resume()
        assert engine.is_paused
        (tmp_path / "away").rename(folder / "model.safetensors")
        engine.resume()
        assert engine.complete("A", max_tokens=5) == text
