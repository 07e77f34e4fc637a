"""An engine's requests are their solo runs, from any thread or task, and end as they should."""

import asyncio
import concurrent.futures
import gc
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest
from processes import run_code
from waiting import wait_for

import helium_mlx
from helium_mlx import EngineError, GenerationError, HeliumEngine, HeliumError
from helium_mlx.engine import engine as engine_module
from helium_mlx.engine.stream import EngineStream
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.processors import ban_repeated_ngrams, bias_sequences
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]

PROMPTS = [
    "Once upon a time",
    "Il était une fois une fille qui s'appelait Zoé",
    "A",
    "Ogni giorno, dopo pranzo, Agnese giocava nel parco. " * 3,
    "Es war einmal",
]
OPTIONS: list[dict[str, object]] = [
    {"max_tokens": 9},
    {"max_tokens": 12, "temperature": 0.9, "seed": 7},
    {"max_tokens": 10, "temperature": 1.2, "seed": 0, "top_p": 0.8, "top_k": 30, "repetition_penalty": 1.3},
    {"max_tokens": 40, "stop": [","], "logprobs": 2},
    {"max_tokens": 7, "logit_bias": {5: 2.0}, "banned_ids": [444]},
    {"max_tokens": 8, "kv_bits": 8, "kv_group_size": 32},
    {"max_tokens": 30, "max_kv_size": 24, "ignore_eos": True},
    {"max_tokens": 20, "prompt_lookup": 4},
    {"max_tokens": 12, "logits_processors": [ban_repeated_ngrams(1), bias_sequences({(444,): 6.0})]},
    {"max_tokens": 9, "temperature": 0.9, "seed": 3, "prompt_lookup": 4, "logits_processors": [ban_repeated_ngrams(2)]},
]


@pytest.fixture(scope="module")
def engine() -> Iterator[HeliumEngine]:
    with HeliumEngine("demo", dtype="float32") as engine:
        yield engine


def ask(engine: HeliumEngine, prompt: object, **options: object) -> EngineStream:
    return cast(Callable[..., EngineStream], engine.stream)(prompt, **options)


def solo(demo: Demo, prompt: object, **options: object) -> list[helium_mlx.GenerationChunk]:
    stream = cast(Callable[..., Iterator[helium_mlx.GenerationChunk]], helium_mlx.stream_generate)
    return list(stream(*demo, prompt, **options))


def told(chunks: list[helium_mlx.GenerationChunk]) -> list[tuple[object, ...]]:
    """What of chunks does not depend on time; log-probabilities to five places."""
    return [
        (
            chunk.text,
            chunk.token,
            chunk.finish_reason,
            chunk.prompt_tokens,
            chunk.generated_tokens,
            None if chunk.logprob is None else round(chunk.logprob, 3),
            {token: round(value, 3) for token, value in chunk.top_logprobs.items()},
            chunk.from_draft,
        )
        for chunk in chunks
    ]


def running(engine: HeliumEngine) -> int:
    return engine._worker.call(lambda: len(engine._worker.scheduler.tasks)).result()


def test_every_request_of_many_at_once_is_its_solo_run(engine: HeliumEngine, demo: Demo) -> None:
    requests = [(prompt, options) for prompt in PROMPTS for options in OPTIONS]
    streams = [ask(engine, prompt, **options) for prompt, options in requests]
    for stream, (prompt, options) in zip(streams, requests, strict=True):
        assert told(list(stream)) == told(solo(demo, prompt, **options)), (prompt, options)


def test_what_was_kept_of_other_requests_changes_nothing(engine: HeliumEngine, demo: Demo) -> None:
    texts = [helium_mlx.generate(*demo, prompt, max_tokens=40) for prompt in PROMPTS]
    prompts = [begun for prompt, text in zip(PROMPTS, texts, strict=True) for begun in (prompt, f"{prompt} {text}")]
    prompts += [prompt.replace("o", "oo") + " and" for prompt in prompts]
    cold = {prompt: [told(solo(demo, prompt, **options)) for options in OPTIONS[:5]] for prompt in prompts}
    cached = 0
    for _ in range(2):
        streams = [(prompt, [ask(engine, prompt, **options) for options in OPTIONS[:5]]) for prompt in prompts]
        for prompt, asked in streams:
            chunks = [list(stream) for stream in asked]
            assert [told(each) for each in chunks] == cold[prompt]
            cached += sum(each[0].cached_tokens for each in chunks)
            assert [stream.result().cached_tokens for stream in asked] == [each[-1].cached_tokens for each in chunks]
    total = sum(5 * len(demo[1].encode(prompt)) for prompt in prompts)
    # Of the second time, all but the last token of each at least.
    assert cached >= total - 5 * len(prompts)


def test_requests_decode_together_in_one_pass_a_token(engine: HeliumEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    original = HeliumForCausalLM.logits_after

    def counting(self: HeliumForCausalLM, tokens: mx.array, *rest: object) -> mx.array:
        rows.append(tokens.shape[0])
        return cast(Callable[..., mx.array], original)(self, tokens, *rest)

    monkeypatch.setattr(HeliumForCausalLM, "logits_after", counting)
    engine.pause()
    streams = [ask(engine, "A", max_tokens=11, ignore_eos=True) for _ in range(6)]
    engine.resume()
    for stream in streams:
        stream.result()
    assert rows == [6] * 10


def test_complete_and_score_give_what_the_functions_give(engine: HeliumEngine, demo: Demo) -> None:
    assert engine.complete("Es war", max_tokens=12) == helium_mlx.generate(*demo, "Es war", max_tokens=12)
    assert engine.score("Es war einmal", top_logprobs=2) == helium_mlx.score(*demo, "Es war einmal", top_logprobs=2)
    ids = demo[1].encode("Es war einmal")
    assert engine.score(ids) == helium_mlx.score(*demo, ids)


@pytest.mark.parametrize("text", [None, 5, object(), b"abc", {1: 2, 3: 4}, [], [1], [1, 10**6], [1] * 5000, "", {1, 2}])
def test_texts_that_cannot_be_scored_are_refused_at_the_call_as_by_the_function(
    engine: HeliumEngine, demo: Demo, text: object
) -> None:
    said: list[str] = []
    for score in (engine.score, lambda text: helium_mlx.score(*demo, text)):
        with pytest.raises(HeliumError) as refused:
            cast(Callable[[object], object], score)(text)
        said.append(str(refused.value))
    assert said[0] == said[1]
    for options in ({"top_logprobs": -1}, {"top_logprobs": 10**6}, {"cancel": 5}):
        with pytest.raises(GenerationError, match=f"{next(iter(options))} is"):
            cast(Callable[..., object], engine.score)("Es war", **options)


def test_arrays_are_scored(engine: HeliumEngine) -> None:
    import numpy as np

    score = cast(Callable[[object], helium_mlx.Score], engine.score)
    assert score(mx.array([1, 5, 6])) == score(np.array([1, 5, 6])) == score([1, 5, 6])


def interrupted_wait(until: Callable[[list["Future[object]"]], object]) -> Callable[..., object]:
    """Return a `wait` in which Ctrl-C comes once `until` returns, which gets what is waited for."""

    def wait(futures: list["Future[object]"], timeout: float) -> object:
        until(futures)
        raise KeyboardInterrupt

    return wait


def test_who_is_interrupted_takes_a_score_back(engine: HeliumEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.pause()
    monkeypatch.setattr(engine_module, "wait", interrupted_wait(lambda futures: wait_for(lambda: running(engine) == 1)))
    with pytest.raises(KeyboardInterrupt):
        engine.score([1] * 300)
    wait_for(lambda: running(engine) == 0)
    monkeypatch.undo()
    engine.resume()


def test_another_thread_cancels_a_score(engine: HeliumEngine) -> None:
    cancel = threading.Event()
    engine.pause()
    canceller = threading.Thread(target=lambda: (wait_for(lambda: running(engine) == 1), cancel.set()))
    canceller.start()
    with pytest.raises(EngineError, match="the score was cancelled"):
        engine.score([1] * 300, cancel=cancel)
    canceller.join()
    wait_for(lambda: running(engine) == 0)
    engine.resume()


def test_who_is_interrupted_in_a_continuation_leaves_no_request(
    engine: HeliumEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with long(engine) as stream:
        next(stream)
        stream.save(tmp_path / "state")
    wait_for(lambda: running(engine) == 0)
    monkeypatch.setattr(engine_module, "wait", interrupted_wait(concurrent.futures.wait))
    with pytest.raises(KeyboardInterrupt):
        engine.continue_stream(tmp_path / "state")
    wait_for(lambda: running(engine) == 0)


def test_what_an_interrupted_caller_asked_for_is_not_done_later(
    engine: HeliumEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, go_on = threading.Event(), threading.Event()
    engine._worker.call(lambda: (held.set(), go_on.wait()))
    held.wait()
    monkeypatch.setattr(engine_module, "wait", interrupted_wait(lambda futures: None))
    with pytest.raises(KeyboardInterrupt):
        engine.pause()
    go_on.set()
    assert running(engine) == 0 and not engine.is_paused


def test_a_result_has_the_whole_and_the_reason(engine: HeliumEngine, demo: Demo) -> None:
    stream = engine.stream("Es war", max_tokens=6)
    first = next(stream)
    end, alone = stream.result(), solo(demo, "Es war", max_tokens=6)
    assert (end.text, end.tokens) == ("".join(chunk.text for chunk in alone), [chunk.token for chunk in alone])
    assert (end.finish_reason, end.generated_tokens, end.prompt_tokens) == ("length", 6, alone[0].prompt_tokens)
    assert first.token == end.tokens[0]
    assert list(stream) == []


def test_tasks_iterate_await_and_gather(engine: HeliumEngine, demo: Demo) -> None:
    async def main() -> tuple[list[int], list[str], str, float]:
        read = [chunk.token async for chunk in engine.stream("Il était", max_tokens=8)]
        texts = await asyncio.gather(*(engine.complete_async(prompt, max_tokens=5) for prompt in PROMPTS))
        end = await engine.stream("A", max_tokens=4)
        return read, texts, end.text, (await engine.score_async("Hi there")).total

    read, texts, text, total = asyncio.run(main())
    assert read == [chunk.token for chunk in solo(demo, "Il était", max_tokens=8)]
    assert texts == [helium_mlx.generate(*demo, prompt, max_tokens=5) for prompt in PROMPTS]
    assert text == helium_mlx.generate(*demo, "A", max_tokens=4)
    assert total == helium_mlx.score(*demo, "Hi there").total


def test_without_a_seed_draws_differ(engine: HeliumEngine) -> None:
    assert len({engine.complete("A", temperature=1.5, max_tokens=12) for _ in range(4)}) > 1


BAD: dict[str, tuple[object, dict[str, object], str]] = {
    "no tokens": ([], {}, "prompt has no tokens"),
    "no id": ([1, 10**6], {}, "not an id"),
    "too long": ([1] * 5000, {}, "the prompt has 5000 tokens"),
    "max_tokens": ("A", {"max_tokens": 0}, "max_tokens is 0"),
    "temperature": ("A", {"temperature": -1.0}, "temperature is -1"),
    "stop": ("A", {"stop": [""]}, "at least one character"),
    "logprobs": ("A", {"logprobs": -1}, "logprobs is -1"),
    "banned_ids": ("A", {"banned_ids": [10**6]}, "banned_ids has the token 1000000"),
    "kv_bits": ("A", {"kv_bits": 7}, "kv_bits"),
    "prompt_lookup": ("A", {"prompt_lookup": -1}, "prompt_lookup"),
    "max_kv_size": ("A", {"max_kv_size": 1}, "max_kv_size"),
    "ignore_eos": ("A", {"ignore_eos": "no"}, "ignore_eos is 'no'; it must be True or False"),
    "ignore_eos of an unbatched request": ("A", {"ignore_eos": 1, "prompt_lookup": 2}, "ignore_eos is 1;"),
    "kv_group_size": ("A", {"kv_bits": 8, "kv_group_size": "x"}, "kv_group_size"),
    "repetition_context_size": ("A", {"repetition_context_size": 0}, "repetition_context_size"),
    "a prompt of another type": (None, {}, "prompt is None"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused_at_the_call(engine: HeliumEngine, name: str) -> None:
    prompt, options, said = BAD[name]
    with pytest.raises(HeliumError, match=said):
        ask(engine, prompt, **options)


def test_a_pause_takes_a_truth_value(engine: HeliumEngine) -> None:
    with pytest.raises(GenerationError, match="keep_caches is 'no'; it must be True or False"):
        cast(Callable[..., object], engine.pause)(keep_caches="no")
    assert not engine.is_paused


def test_options_that_an_engine_lacks_are_refused_by_name(engine: HeliumEngine) -> None:
    for name in ("cache", "cached_tokens", "cancel", "on_progress", "prefill_step_size"):
        with pytest.raises(TypeError, match=name):
            ask(engine, "A", **{name: None})


@pytest.mark.parametrize(
    "option", ["batch_size", "prefill_step_size", "buffer", "memory_limit", "cache_limit", "prefix_cache_bytes"]
)
def test_sizes_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(GenerationError, match=f"{option} is -1"):
        cast(Callable[..., object], HeliumEngine)("demo", **{option: -1})
    with pytest.raises(GenerationError, match=f"{option} is {2**70}"):
        cast(Callable[..., object], HeliumEngine)("demo", **{option: 2**70})


def test_what_cannot_be_loaded_raises_where_the_engine_is_made(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(HeliumError, match=r"config\.json"):
        HeliumEngine(tmp_path)
    wait_for(lambda: threading.active_count() == before)


@pytest.mark.parametrize("options", [{}, {"kv_bits": 8, "kv_group_size": 32}], ids=["batch", "unbatched"])
def test_another_thread_cancels(engine: HeliumEngine, demo: Demo, options: dict[str, object]) -> None:
    stream = ask(engine, "Once upon a time", max_tokens=2000, ignore_eos=True, **options)
    first = next(stream)
    canceller = threading.Thread(target=stream.cancel)
    canceller.start()
    canceller.join()
    chunks = [first, *stream]
    assert (chunks[-1].token, chunks[-1].finish_reason) == (-1, "cancelled")
    tokens = [chunk.token for chunk in chunks[:-1]]
    alone = solo(demo, "Once upon a time", max_tokens=len(tokens), ignore_eos=True, **options)
    assert tokens == [chunk.token for chunk in alone]
    assert stream.result().finish_reason == "cancelled"
    assert running(engine) == 0


@pytest.mark.parametrize("options", [{}, {"kv_bits": 8, "kv_group_size": 32}], ids=["batch", "unbatched"])
def test_a_prompt_is_cancelled_within_a_step(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    steps: list[int] = []
    original = type(demo[0].model).run

    def run(module: object, h: mx.array, *rest: object, **more: object) -> object:
        steps.append(h.shape[1])
        if len(steps) == 3:
            stream.cancel()
        return cast(Callable[..., object], original)(module, h, *rest, **more)

    with HeliumEngine("demo", dtype="float32", prefill_step_size=8) as engine:
        monkeypatch.setattr(type(demo[0].model), "run", run)
        engine.pause()
        stream = ask(engine, [1] * 400, max_tokens=5, **options)
        engine.resume()
        (chunk,) = list(stream)
    assert (chunk.finish_reason, chunk.token, chunk.generated_tokens) == ("cancelled", -1, 0)
    assert steps == [8, 8, 8]


def test_a_waiting_request_is_cancelled(engine: HeliumEngine) -> None:
    engine.pause()
    stream = engine.stream("A", max_tokens=3)
    stream.cancel()
    assert [chunk.finish_reason for chunk in stream] == ["cancelled"]
    engine.resume()


def long(engine: HeliumEngine) -> EngineStream:
    return engine.stream("A", max_tokens=3000, ignore_eos=True)


def breaks(engine: HeliumEngine) -> None:
    for _ in long(engine):
        break


def raises(engine: HeliumEngine) -> None:
    with pytest.raises(KeyError):
        for _ in long(engine):
            raise KeyError


def leaves_with(engine: HeliumEngine) -> None:
    with long(engine) as stream:
        next(stream)


def forgets(engine: HeliumEngine) -> None:
    long(engine)


async def breaks_as_task(engine: HeliumEngine) -> None:
    async for _ in long(engine):
        break


async def task_is_cancelled(engine: HeliumEngine) -> None:
    async def read() -> None:
        async for _ in long(engine):
            pass

    await cancelled(engine, asyncio.ensure_future(read()))


async def complete_is_cancelled(engine: HeliumEngine) -> None:
    completion = engine.complete_async("A", max_tokens=3000, ignore_eos=True)
    await cancelled(engine, asyncio.ensure_future(completion))


async def cancelled(engine: HeliumEngine, task: "asyncio.Future[None] | asyncio.Future[str]") -> None:
    while not running(engine):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "leave",
    [breaks, raises, leaves_with, forgets, breaks_as_task, task_is_cancelled, complete_is_cancelled],
    ids=lambda leave: leave.__name__,
)
def test_whoever_leaves_cancels(engine: HeliumEngine, leave: Callable[[HeliumEngine], object]) -> None:
    left = leave(engine)
    if asyncio.iscoroutine(left):
        asyncio.run(left)
    gc.collect()
    wait_for(lambda: running(engine) == 0)


def test_a_stream_can_be_closed_beside_others(engine: HeliumEngine, demo: Demo) -> None:
    engine.pause()
    streams = [engine.stream(prompt, max_tokens=20) for prompt in PROMPTS]
    begun = engine.stream(PROMPTS[1], max_tokens=3000, ignore_eos=True)
    streams[1].close()
    engine.resume()
    next(begun)
    begun.close()
    assert begun.result().finish_reason == "cancelled"
    assert streams[1].result().text == ""
    for place in (0, 2, 3, 4):
        assert streams[place].result().text == helium_mlx.generate(*demo, PROMPTS[place], max_tokens=20)


def test_what_changes_nothing_cannot_be_set(engine: HeliumEngine) -> None:
    for name in ("batch_size", "memory_limit", "is_paused", "stream", "foo"):
        with pytest.raises(EngineError, match=f"engine's {name} cannot be set.*make another HeliumEngine"):
            setattr(engine, name, 3)
    with engine.stream("A", max_tokens=1) as stream:
        for name in ("max_tokens", "tokens", "foo"):
            with pytest.raises(AttributeError, match=name):
                setattr(stream, name, 3)


def test_closing_ends_what_runs_and_refuses_what_comes() -> None:
    before = threading.active_count()
    with HeliumEngine("demo", dtype="float32", batch_size=2) as engine:
        streams = [engine.stream("A", max_tokens=3000, ignore_eos=True) for _ in range(3)]
        streams.append(engine.stream("A", max_tokens=3000, ignore_eos=True, kv_bits=8, kv_group_size=32))
        next(streams[0])
        scored = engine._queue_score("Es war einmal", 0)
    assert [stream.result().finish_reason for stream in streams] == ["cancelled"] * 4
    with pytest.raises(EngineError, match="closed"):
        scored.result()
    engine.close()
    for use in (lambda: engine.stream("A"), lambda: engine.score("Es war"), engine.pause, engine.resume):
        with pytest.raises(EngineError, match="the engine is closed; make a new one"):
            use()
    assert threading.active_count() == before


def test_an_engine_that_nobody_holds_ends_its_thread() -> None:
    before = threading.active_count()
    engine = HeliumEngine("demo", dtype="float32")
    stream = engine.stream("A", max_tokens=4)
    del engine
    gc.collect()
    # Its stream holds it.
    assert stream.result().generated_tokens == 4
    del stream
    gc.collect()
    wait_for(lambda: threading.active_count() == before)


def test_the_interpreter_ends_without_a_close() -> None:
    code = """
from helium_mlx import HeliumEngine
engine = HeliumEngine("demo", dtype="float32")
streams = [engine.stream("A", max_tokens=4000, ignore_eos=True) for _ in range(3)]
print(next(streams[0]).generated_tokens)
"""
    ended = run_code(code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1\n", "")


READERS = {
    "thread": "threading.Thread(target=read).start()",
    "executor": "concurrent.futures.ThreadPoolExecutor().submit(read)",
    "task": "threading.Thread(target=lambda: read(lambda: asyncio.run(engine.complete_async('A')))).start()",
    "score": "threading.Thread(target=lambda: read(lambda: engine.score('Es war'))).start()",
    "score as task": "threading.Thread(target=lambda: read(lambda: asyncio.run(engine.score_async('Es war')))).start()",
}


@pytest.mark.parametrize("reader", READERS)
def test_the_interpreter_ends_while_somebody_waits_for_a_paused_engine(reader: str) -> None:
    code = f"""
import asyncio, concurrent.futures, threading
from helium_mlx import EngineError, HeliumEngine
engine = HeliumEngine("demo", dtype="float32")
engine.pause()
def read(wait=lambda: engine.complete("A")):
    try:
        wait()
    except EngineError as error:
        print(error, flush=True)
{READERS[reader]}
"""
    ended = run_code(code)
    assert ended.stdout == "the program is ending, and the engine is paused; resume it or close it before the end\n"
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_thread_goes_on_reading_when_the_main_one_has_ended() -> None:
    code = """
import threading
from helium_mlx import HeliumEngine
engine = HeliumEngine("demo", dtype="float32")
def read():
    threading.main_thread().join()
    print(engine.stream("A", max_tokens=30, ignore_eos=True).result().generated_tokens, flush=True)
threading.Thread(target=read).start()
"""
    ended = run_code(code)
    assert (ended.stdout, ended.returncode, ended.stderr) == ("30\n", 0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_fork_is_refused_in_one_line() -> None:
    code = """
import os, warnings
warnings.simplefilter("ignore")
from helium_mlx import EngineError, HeliumEngine
engine = HeliumEngine("demo", dtype="float32")
stream = engine.stream("A", max_tokens=3)
process = os.fork()
if process == 0:
    try:
        engine.stream("A")
    except EngineError as error:
        print(error, flush=True)
    engine.close()
    del stream
    os._exit(7)
assert os.waitpid(process, 0)[1] == 7 << 8
print(stream.result().generated_tokens)
"""
    ended = run_code(code)
    said, count = ended.stdout.splitlines()
    assert said.startswith("this engine belongs to process ") and "start the process with spawn" in said
    assert (count, ended.returncode, ended.stderr) == ("3", 0, "")


def test_importing_an_engine_loads_nothing_heavy() -> None:
    heavy = "('transformers', 'torch', 'mlx_lm', 'numpy')"
    ended = run_code(
        f"import sys; from helium_mlx import HeliumEngine; print([m for m in {heavy} if m in sys.modules])"
    )
    assert ended.stdout == "[]\n"


def test_numbers_of_mlx_are_taken(engine: HeliumEngine) -> None:
    options = {"kv_bits": 8, "kv_group_size": 32, "max_kv_size": 40}
    arrays = {name: mx.array(value) for name, value in options.items()}
    assert engine.complete("Once", max_tokens=4, **arrays) == engine.complete("Once", max_tokens=4, **options)


def test_a_processor_that_fails_ends_its_request_and_no_other(engine: HeliumEngine, demo: Demo) -> None:
    def failing(ids: mx.array, scores: mx.array) -> mx.array:
        if ids.shape[1] > 6:
            raise ValueError("no more")
        return scores

    broken, other = ask(engine, "A", max_tokens=20, logits_processors=[failing]), ask(engine, "A", max_tokens=9)
    with pytest.raises(Exception, match="no more"):
        list(broken)
    assert [chunk.token for chunk in other] == [chunk.token for chunk in solo(demo, "A", max_tokens=9)]
