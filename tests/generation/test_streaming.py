import asyncio
import concurrent.futures
import inspect
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest
from passes import Passes
from tiny_checkpoints import write_checkpoint

import helium_mlx
from helium_mlx.errors import ContextOverflowError, GenerationError, HeliumError
from helium_mlx.generation.completion import GenerationChunk
from helium_mlx.generation.streaming import Decoding, prefill, stream_generate
from helium_mlx.kv_cache import memory as cache_memory
from helium_mlx.kv_cache.make import copy_cache, make_cache
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.loading import load_model
from helium_mlx.model.processors import ban, ban_repeated_ngrams, bias_sequences
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]

PROMPT = "Once upon a time"


def naive_greedy(model: HeliumForCausalLM, prompt: list[int], count: int) -> list[int]:
    """The whole text again for every token: slow and obvious."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(mx.argmax(model(mx.array([tokens])).logits[0, -1]).item()))  # pyright: ignore[reportArgumentType]
    return tokens[len(prompt) :]


def collect(chunks: Iterator[GenerationChunk]) -> tuple[list[GenerationChunk], str]:
    listed = list(chunks)
    return listed, "".join(chunk.text for chunk in listed)


def test_greedy_is_the_naive_loop(demo: Demo) -> None:
    model, tokenizer = demo
    chunks, _ = collect(helium_mlx.stream_generate(model, tokenizer, PROMPT, max_tokens=60, ignore_eos=True))
    assert [chunk.token for chunk in chunks] == naive_greedy(model, tokenizer.encode(PROMPT), 60)


def test_the_stream_joined_is_the_text_decoded(demo: Demo) -> None:
    model, tokenizer = demo
    chunks, text = collect(helium_mlx.stream_generate(model, tokenizer, PROMPT, max_tokens=120, ignore_eos=True))
    assert text == tokenizer.decode([chunk.token for chunk in chunks])


def test_generate_returns_what_the_stream_yields(demo: Demo) -> None:
    _, text = collect(helium_mlx.stream_generate(*demo, PROMPT, max_tokens=30))
    assert helium_mlx.generate(*demo, PROMPT, max_tokens=30) == text


@pytest.mark.parametrize("step_size", [1, 3, 512])
def test_prefill_in_chunks_equals_whole(demo: Demo, step_size: int) -> None:
    model, tokenizer = demo
    tokens = tokenizer.encode(PROMPT * 3)
    logits = prefill(model, tokens, make_cache(model), step_size=step_size)
    assert mx.allclose(logits, model(mx.array([tokens])).logits[:, -1], rtol=1e-4, atol=1e-4)


def test_a_run_that_ends_by_length_computes_just_its_tokens(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Passes(demo[0], monkeypatch)
    tokens = demo[1].encode(PROMPT)
    collect(helium_mlx.stream_generate(*demo, tokens, max_tokens=7, ignore_eos=True))
    assert counted.lengths == [len(tokens)] + [1] * 6


def test_a_run_that_ends_by_eos_computes_at_most_one_more(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Passes(demo[0], monkeypatch)
    chunks, _ = collect(helium_mlx.stream_generate(*demo, PROMPT, max_tokens=1000))
    assert chunks[-1].finish_reason == "eos"
    assert len(counted.lengths) == 1 + len(chunks)


def test_prefill_takes_steps_of_the_given_size(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, progress = Passes(demo[0], monkeypatch), []
    collect(
        helium_mlx.stream_generate(
            *demo,
            [1] * 10,
            max_tokens=1,
            prefill_step_size=4,
            on_progress=lambda done, total: progress.append((done, total)),
        )
    )
    assert counted.lengths == [4, 4, 2]
    assert progress == [(4, 10), (8, 10), (10, 10)]


def test_no_logits_are_computed_but_each_last(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, original = [], type(demo[0]).logits
    monkeypatch.setattr(type(demo[0]), "logits", lambda self, h: (rows.append(h.shape), original(self, h))[1])
    collect(helium_mlx.stream_generate(*demo, [1] * 10, max_tokens=3, prefill_step_size=4, ignore_eos=True))
    assert rows == [(1, demo[0].config.hidden_size)] * 3


def test_greedy_computes_no_log_softmax(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a log-softmax")

    for name in ("logsumexp", "softmax", "exp"):
        monkeypatch.setattr(mx, name, refuse)
    assert len(collect(helium_mlx.stream_generate(*demo, PROMPT, max_tokens=3, ignore_eos=True))[0]) == 3


def test_the_next_step_is_under_way_when_a_token_is_read(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    events, start, read = [], mx.async_eval, Decoding._read
    monkeypatch.setattr(mx, "async_eval", lambda *arrays: (events.append("start"), start(*arrays)))
    monkeypatch.setattr(Decoding, "_read", lambda self, step: (events.append("read"), read(self, step))[1])
    collect(helium_mlx.stream_generate(*demo, PROMPT, max_tokens=4, ignore_eos=True))
    # The first is the check of the prompt's logits.
    assert events == ["start", "start", "start", "read", "start", "read", "start", "read", "read"]


def test_a_prompt_in_chunks_is_evaluated_chunk_by_chunk(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated, original = [], mx.eval
    monkeypatch.setattr(mx, "eval", lambda *arrays: (evaluated.append(1), original(*arrays))[1])
    prefill(demo[0], [1] * 10, make_cache(demo[0]), step_size=4)
    assert len(evaluated) == 2


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"repetition_penalty": 1.2}, {"logprobs": 2}])
def test_a_stream_may_be_read_from_one_thread_after_another(demo: Demo, options: dict[str, float]) -> None:
    stream = helium_mlx.stream_generate(*demo, PROMPT, max_tokens=5, ignore_eos=True, **options)  # pyright: ignore
    with concurrent.futures.ThreadPoolExecutor(1) as first, concurrent.futures.ThreadPoolExecutor(1) as second:
        chunks = [pool.submit(next, stream).result() for pool in (first, second, first, second, first)]
    assert chunks[-1].finish_reason == "length"


def test_streams_may_be_read_in_turns_by_the_threads_of_an_event_loop(demo: Demo) -> None:
    async def read(prompt: str) -> str:
        stream = helium_mlx.stream_generate(*demo, prompt, max_tokens=6, ignore_eos=True)
        texts = []
        for _ in range(6):
            # One thread at a time: MLX's own arrays are not for several.
            async with turn:
                texts.append((await asyncio.to_thread(next, stream)).text)
        return "".join(texts)

    async def read_all() -> list[str]:
        return await asyncio.gather(*map(read, prompts))

    prompts, turn = [PROMPT, "Es war einmal", "C'era una volta"], asyncio.Lock()
    expected = [helium_mlx.generate(*demo, prompt, max_tokens=6, ignore_eos=True) for prompt in prompts]
    assert asyncio.run(read_all()) == expected


def test_a_model_may_be_loaded_in_one_thread_and_run_in_another(demo: Demo) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as first, concurrent.futures.ThreadPoolExecutor(1) as second:
        model, tokenizer = first.submit(helium_mlx.load, "demo", dtype="float32").result()
        text = second.submit(helium_mlx.generate, model, tokenizer, PROMPT, max_tokens=6).result()
    assert text == helium_mlx.generate(*demo, PROMPT, max_tokens=6)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
@pytest.mark.parametrize("lookup", [0, 4])
def test_logits_that_no_text_should_be_made_of_are_an_error(tmp_path: Path, value: float, lookup: int) -> None:
    model = load_model(write_checkpoint(tmp_path, vocab_size=2048))
    model.model.norm.weight = model.model.norm.weight * value
    cache = make_cache(model)
    tokenizer = HeliumTokenizer.from_pretrained("demo")
    with pytest.raises(GenerationError, match="logits are NaN, infinite or all the same"):
        next(stream_generate(model, tokenizer, [1, 5, 6], cache=cache, prompt_lookup=lookup))
    assert not cache[0].in_use


@pytest.mark.parametrize("end", ["length", "stop", "closed", "eos"])
def test_the_cache_holds_all_but_the_last_token_however_a_run_ends(demo: Demo, end: str) -> None:
    cache, tokens = make_cache(demo[0]), demo[1].encode(PROMPT)
    options: dict[str, object] = {"max_tokens": 6 if end == "length" else 1000, "ignore_eos": end != "eos"}
    if end == "stop":
        options["stop"] = helium_mlx.generate(*demo, PROMPT, max_tokens=12)[-4:]
    stream = cast(Callable[..., Iterator[GenerationChunk]], helium_mlx.stream_generate)(
        *demo, tokens, cache=cache, **options
    )
    chunks = [next(stream) for _ in range(5)] if end == "closed" else list(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert end == "closed" or chunks[-1].finish_reason == end
    assert {layer.offset for layer in cache} == {len(tokens) + len(chunks) - 1}


def test_ids_may_come_as_an_array(demo: Demo) -> None:
    tokens = demo[1].encode(PROMPT)
    assert helium_mlx.generate(*demo, mx.array(tokens), max_tokens=5) == helium_mlx.generate(
        *demo, tokens, max_tokens=5
    )


def test_unseeded_samples_differ(demo: Demo) -> None:
    texts = {helium_mlx.generate(*demo, PROMPT, max_tokens=20, temperature=3.0) for _ in range(4)}
    assert len(texts) > 1


def test_a_tiny_temperature_is_greedy(demo: Demo) -> None:
    greedy = helium_mlx.generate(*demo, PROMPT, max_tokens=10)
    assert helium_mlx.generate(*demo, PROMPT, max_tokens=10, temperature=1e-40, seed=1) == greedy


def test_a_closed_stream_stops(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Passes(demo[0], monkeypatch)
    stream = helium_mlx.stream_generate(*demo, PROMPT, max_tokens=1000, ignore_eos=True)
    next(stream)
    next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(counted.lengths) <= 4


def test_stop_strings_end_the_text_before_them(demo: Demo) -> None:
    _, whole = collect(helium_mlx.stream_generate(*demo, PROMPT, max_tokens=80, ignore_eos=True))
    # Begins and ends inside of words, so inside of tokens.
    stop = whole[41:55]
    chunks, text = collect(helium_mlx.stream_generate(*demo, PROMPT, max_tokens=80, ignore_eos=True, stop=[stop]))
    assert text == whole[: whole.find(stop)]
    assert chunks[-1].finish_reason == "stop"
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])


def test_any_eos_id_of_the_checkpoint_stops(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = demo
    chunks, text = collect(helium_mlx.stream_generate(model, tokenizer, PROMPT, max_tokens=20, ignore_eos=True))
    fifth = chunks[4].token
    first = [chunk.token for chunk in chunks].index(fifth)
    monkeypatch.setattr(tokenizer, "eos_token_ids", (2, fifth))
    stopped, shorter = collect(helium_mlx.stream_generate(model, tokenizer, PROMPT, max_tokens=20))
    assert (stopped[-1].finish_reason, stopped[-1].token, len(stopped)) == ("eos", fifth, first + 1)
    assert text.startswith(shorter)
    ignored, _ = collect(helium_mlx.stream_generate(model, tokenizer, PROMPT, max_tokens=20, ignore_eos=True))
    assert [chunk.token for chunk in ignored] == [chunk.token for chunk in chunks]


def test_a_seed_repeats_a_sampled_text(demo: Demo) -> None:
    def sample(seed: int) -> str:
        return helium_mlx.generate(*demo, PROMPT, max_tokens=40, temperature=1.5, seed=seed)

    assert sample(0) == sample(0)
    assert len({sample(seed) for seed in range(5)}) > 1


def test_logprobs_are_the_models_own(demo: Demo) -> None:
    model, tokenizer = demo
    chunks, _ = collect(helium_mlx.stream_generate(model, tokenizer, PROMPT, max_tokens=3, logprobs=4))
    logits = model(mx.array([tokenizer.encode(PROMPT)])).logits[0, -1]
    expected = logits - mx.logsumexp(logits)
    first = chunks[0]
    assert list(first.top_logprobs) == mx.argsort(-logits)[:4].tolist()
    assert first.logprob == pytest.approx(first.top_logprobs[first.token])
    for token, value in first.top_logprobs.items():
        assert value == pytest.approx(expected[token].item(), abs=1e-4)
    silent, _ = collect(helium_mlx.stream_generate(model, tokenizer, PROMPT, max_tokens=1))
    assert (silent[0].logprob, silent[0].top_logprobs) == (None, {})


def test_a_cache_continues_a_text(demo: Demo) -> None:
    model, tokenizer = demo
    tokens = tokenizer.encode(PROMPT + ", there was")
    cold, _ = collect(helium_mlx.stream_generate(model, tokenizer, tokens, max_tokens=10, ignore_eos=True))
    cache = make_cache(model)
    model(mx.array([tokens[:4]]), past_key_values=cache)
    warm, _ = collect(
        helium_mlx.stream_generate(model, tokenizer, tokens[4:], max_tokens=10, cache=cache, ignore_eos=True)
    )
    assert [chunk.token for chunk in warm] == [chunk.token for chunk in cold]
    assert cache[0].offset == len(tokens) + 9


def test_statistics_count(demo: Demo) -> None:
    chunks, _ = collect(helium_mlx.stream_generate(*demo, PROMPT, max_tokens=5, ignore_eos=True))
    assert [chunk.generated_tokens for chunk in chunks] == [1, 2, 3, 4, 5]
    assert chunks[-1].prompt_tokens == len(demo[1].encode(PROMPT))
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].generation_tps > 0
    assert chunks[-1].peak_memory > 0


def test_a_prompt_longer_than_the_context_says_both_lengths(demo: Demo) -> None:
    context = demo[0].config.max_position_embeddings
    with pytest.raises(ContextOverflowError, match=rf"{context + 3} tokens.*at most {context} fit"):
        helium_mlx.stream_generate(*demo, [5] * (context + 3))


def test_a_prompt_that_fills_the_context_is_followed_by_one_token(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = demo
    context = 64
    monkeypatch.setattr(model.config, "max_position_embeddings", context)
    chunks, _ = collect(helium_mlx.stream_generate(model, tokenizer, [1] * context, max_tokens=5, ignore_eos=True))
    best = model(mx.array([[1] * context])).logits[0, -1].argmax().item()
    assert [(chunk.token, chunk.finish_reason) for chunk in chunks] == [(best, "length")]


def test_no_prompts_give_no_texts_and_one_row_of_ids_is_a_prompt(demo: Demo) -> None:
    generate = cast("Callable[..., object]", helium_mlx.generate)
    assert generate(*demo, []) == []
    ids = [1, 400, 500]
    assert generate(*demo, mx.array([ids]), max_tokens=4) == generate(*demo, ids, max_tokens=4)


def test_several_samples_of_each_prompt_come_after_one_another(demo: Demo) -> None:
    generate = cast("Callable[..., list[str]]", helium_mlx.generate)
    texts = generate(*demo, ["A", "Il"], max_tokens=4, temperature=1.0, seed=3, samples=2, batch_size=2)
    assert len(texts) == 4
    assert texts[0] == helium_mlx.generate(*demo, "A", max_tokens=4, temperature=1.0, seed=3)
    with pytest.raises(GenerationError, match="samples is 2, and a single prompt came"):
        generate(*demo, "A", samples=2)


def test_a_text_ends_where_the_context_does(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo[0].config, "max_position_embeddings", 12)
    chunks, _ = collect(helium_mlx.stream_generate(*demo, [1] * 8, max_tokens=100, ignore_eos=True))
    assert (len(chunks), chunks[-1].finish_reason) == (4, "length")


BAD: dict[str, tuple[object, dict[str, object], str]] = {
    "no tokens": ([], {}, "no tokens"),
    "a negative id": ([1, -1], {}, "-1 is not an id"),
    "an id past the vocabulary": ([1, 10**6], {}, "1000000 is not an id"),
    "bytes": (b"abc", {}, "prompt is bytes"),
    "truth": ([True], {}, "True is not an id"),
    "a fraction of a token": (PROMPT, {"max_tokens": 3.5}, "max_tokens is 3.5"),
    "max_tokens 0": (PROMPT, {"max_tokens": 0}, "max_tokens is 0"),
    "step size 0": (PROMPT, {"prefill_step_size": 0}, "prefill_step_size is 0"),
    "logprobs below 0": (PROMPT, {"logprobs": -1}, "logprobs is -1"),
    "an empty stop": (PROMPT, {"stop": [""]}, "at least one character"),
    "a cache of another model": (PROMPT, {"cache": []}, "make_cache"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_at_the_call(demo: Demo, name: str) -> None:
    prompt, options, said = BAD[name]
    call = cast(Callable[..., object], helium_mlx.stream_generate)
    with pytest.raises(HeliumError, match=said):
        call(*demo, prompt, **options)


def test_what_could_have_been_a_stop_is_shown_when_the_text_ends(demo: Demo) -> None:
    whole = helium_mlx.generate(*demo, PROMPT, max_tokens=20, ignore_eos=True)
    almost = whole[-3:] + "§"
    assert helium_mlx.generate(*demo, PROMPT, max_tokens=20, ignore_eos=True, stop=almost) == whole


def test_the_cache_takes_memory_for_just_what_is_coming(demo: Demo) -> None:
    cache = make_cache(demo[0])
    collect(helium_mlx.stream_generate(*demo, [1] * 8, max_tokens=5, cache=cache, ignore_eos=True))
    assert cache[0].state[0].shape[2] == 8 + 5 - 1


def test_setting_the_event_ends_the_run_with_the_next_token(demo: Demo) -> None:
    model, tokenizer = demo
    plain = [chunk.token for chunk in stream_generate(model, tokenizer, PROMPT, max_tokens=20, ignore_eos=True)]
    cancel, cache, chunks = threading.Event(), make_cache(model), list[GenerationChunk]()
    for chunk in stream_generate(
        model, tokenizer, PROMPT, max_tokens=20, ignore_eos=True, cache=cache, cancel=cancel
    ):  # fmt: skip
        chunks.append(chunk)
        if len(chunks) == 5:
            cancel.set()
    assert [chunk.finish_reason for chunk in chunks] == [None] * 5 + ["cancelled"]
    assert [chunk.token for chunk in chunks] == plain[:6]
    rest = [
        chunk.token
        for chunk in stream_generate(model, tokenizer, [plain[5]], max_tokens=14, ignore_eos=True, cache=cache)
    ]
    assert rest == plain[6:]


def test_a_run_is_cancelled_between_the_steps_of_its_prompt(demo: Demo) -> None:
    model, tokenizer = demo
    ids, cancel, cache, steps = [1, *range(300, 340)], threading.Event(), make_cache(model), list[int]()

    def on_progress(done: int, total: int) -> None:
        steps.append(done)
        if done == 16:
            cancel.set()

    chunks = list(
        stream_generate(
            model,
            tokenizer,
            ids,
            max_tokens=5,
            cache=cache,
            prefill_step_size=8,
            cancel=cancel,
            on_progress=on_progress,
        )
    )
    assert steps == [8, 16]
    assert [(chunk.token, chunk.text, chunk.finish_reason) for chunk in chunks] == [(-1, "", "cancelled")]
    assert cache[0].offset == 16
    options = {"max_tokens": 12, "ignore_eos": True}
    resumed = stream_generate(model, tokenizer, ids[16:], cache=cache, **options)  # pyright: ignore
    cold = stream_generate(model, tokenizer, ids, **options)  # pyright: ignore
    assert [chunk.token for chunk in resumed] == [chunk.token for chunk in cold]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 3}, {"logprobs": 2}])
@pytest.mark.parametrize("cache_options", [{}, {"kv_bits": 8}, {"max_kv_size": 200}])
def test_prompt_lookup_changes_no_token(
    demo: Demo, options: dict[str, object], cache_options: dict[str, object]
) -> None:
    model, tokenizer = demo
    story = helium_mlx.generate(model, tokenizer, "Once upon a time", max_tokens=60)
    prompt = f"Once upon a time{story} Once upon a time"
    given = {"max_tokens": 50, "ignore_eos": True, **options, **cache_options}
    plain = list(stream_generate(model, tokenizer, prompt, **given))  # pyright: ignore[reportArgumentType]
    guessed = list(stream_generate(model, tokenizer, prompt, prompt_lookup=6, **given))  # pyright: ignore
    assert [chunk.token for chunk in guessed] == [chunk.token for chunk in plain]
    if not options:
        assert sum(chunk.from_draft for chunk in guessed) >= 3
    assert not any(chunk.from_draft for chunk in plain)


def test_a_cache_that_forgets_lets_text_go_on_past_the_context(tmp_path: Path) -> None:
    model = load_model(write_checkpoint(tmp_path, max_position_embeddings=32, vocab_size=2048))
    tokenizer = HeliumTokenizer.from_pretrained("demo")
    chunks = list(stream_generate(model, tokenizer, [1, 5, 6], max_tokens=60, max_kv_size=16, ignore_eos=True))
    assert len(chunks) == 60
    assert chunks[-1].finish_reason == "length"
    assert len(list(stream_generate(model, tokenizer, [1, 5, 6], max_tokens=60, ignore_eos=True))) == 29


def test_a_cache_and_options_for_one_exclude_each_other(demo: Demo) -> None:
    model, tokenizer = demo
    with pytest.raises(GenerationError, match="cache is given beside max_kv_size or kv_bits"):
        stream_generate(model, tokenizer, PROMPT, cache=make_cache(model), kv_bits=8)


@pytest.mark.parametrize("kind", [{}, {"kv_bits": 8, "kv_group_size": 32}, {"max_kv_size": 200}, {"cache": True}])
def test_a_run_that_does_not_fit_is_refused_at_the_call(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, kind: dict[str, object]
) -> None:
    model, tokenizer = demo
    monkeypatch.setattr(cache_memory, "working_set_bytes", lambda: cache_memory.bytes_in_memory(model) + 1000)
    options = {**kind, "cache": make_cache(model)} if "cache" in kind else kind
    with pytest.raises(GenerationError, match=r"weights of .* MB and a KV cache of .* for 303 tokens are over"):
        stream_generate(model, tokenizer, [1, 5, 6], max_tokens=300, **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("lookup", [0, 4])
def test_a_cache_belongs_to_one_run_at_a_time(demo: Demo, lookup: int) -> None:
    cache, options = make_cache(demo[0]), {"max_tokens": 9, "ignore_eos": True, "prompt_lookup": lookup}
    first = stream_generate(*demo, PROMPT, cache=cache, **options)  # pyright: ignore[reportArgumentType]
    second = stream_generate(*demo, PROMPT, cache=cache, **options)  # pyright: ignore[reportArgumentType]
    next(first)
    with pytest.raises(GenerationError, match="cache is in use by another run; close that run first"):
        next(second)
    copied = next(stream_generate(*demo, "A", cache=copy_cache(cache), max_tokens=1))
    first.close()
    stale = stream_generate(*demo, PROMPT, cache=cache, **options)  # pyright: ignore[reportArgumentType]
    again = list(stream_generate(*demo, [5], cache=cache, max_tokens=3, ignore_eos=True))
    with pytest.raises(GenerationError, match=r"cache held .* at the call and has changed"):
        next(stale)
    assert (copied.generated_tokens, len(again)) == (1, 3)


def test_a_list_of_prompts_gives_a_list(demo: Demo) -> None:
    model, tokenizer = demo
    prompts = ["Once upon a time", "Es war einmal", "Il était une fois une fille"]
    solo = [helium_mlx.generate(model, tokenizer, prompt, max_tokens=12) for prompt in prompts]
    assert helium_mlx.generate(model, tokenizer, prompts, max_tokens=12) == solo  # pyright: ignore[reportArgumentType]
    assert helium_mlx.generate(model, tokenizer, prompts, max_tokens=12, logprobs=0, cache=None) == solo  # pyright: ignore
    with pytest.raises(GenerationError, match="max_kv_size is for a single prompt"):
        helium_mlx.generate(model, tokenizer, prompts, max_kv_size=30)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("prompt", [None, 3, {"prompt": "x"}])
def test_what_is_no_prompt_is_refused_with_what_is(demo: Demo, prompt: object) -> None:
    with pytest.raises(GenerationError, match=r"^prompt is .*; give a text, or a flat sequence of token ids$"):
        helium_mlx.generate(*demo, prompt)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_generate_says_that_it_returns_a_text_or_a_list_of_them() -> None:
    signature = inspect.signature(helium_mlx.generate)
    assert signature.return_annotation == str | list[str]
    of_lists = ["batch_size", "samples"]
    assert list(signature.parameters) == [*inspect.signature(stream_generate).parameters, *of_lists]


@pytest.mark.parametrize("split", [1, 12, 24])
@pytest.mark.parametrize("cache_options", [{}, {"kv_bits": 8}, {"max_kv_size": 16}])
def test_the_penalty_sees_the_tokens_that_a_cache_holds(demo: Demo, split: int, cache_options: dict[str, int]) -> None:
    model, tokenizer = demo
    ids = tokenizer.encode("Once upon a time there was a boy called Arthur who lived near the harbour.")[:25]
    options = {"max_tokens": 15, "ignore_eos": True, "repetition_penalty": 1.4}
    cold = list(stream_generate(model, tokenizer, ids, **options, **cache_options))  # pyright: ignore
    cache = make_cache(model, **cache_options)
    list(stream_generate(model, tokenizer, ids[:split], max_tokens=1, cache=cache))
    warm = list(
        stream_generate(model, tokenizer, ids[split:], cache=cache, cached_tokens=ids[:split], **options)  # pyright: ignore
    )
    assert [chunk.token for chunk in warm] == [chunk.token for chunk in cold]
    assert warm[0].prompt_tokens == cold[0].prompt_tokens == 25


def test_processors_see_the_ids_so_far_and_have_the_last_word_before_temperature(demo: Demo) -> None:
    seen: list[list[int]] = []

    def only(ids: mx.array, scores: mx.array) -> mx.array:
        assert (ids.dtype, scores.dtype, scores.shape[0]) == (mx.int32, mx.float32, 1)
        seen.append(cast("list[int]", ids[0].tolist()))
        scores[:, 400 + len(seen)] = 1e9
        return scores

    options = {"max_tokens": 4, "temperature": 2.0, "repetition_penalty": 5.0, "ignore_eos": True}
    chunks = list(stream_generate(*demo, [1, 5, 9], **options, logits_processors=[only]))  # pyright: ignore
    assert [chunk.token for chunk in chunks] == [401, 402, 403, 404]
    assert seen[:4] == [[1, 5, 9], [1, 5, 9, 401], [1, 5, 9, 401, 402], [1, 5, 9, 401, 402, 403]]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 5}, {"prompt_lookup": 3}], ids=str)
def test_the_processors_of_generate_do_the_same_in_streams_and_batches(demo: Demo, options: dict[str, float]) -> None:
    processors = [ban_repeated_ngrams(2), bias_sequences({(444,): 3.0}), ban([402, 403])]
    common = {"max_tokens": 20, "ignore_eos": True, "logits_processors": processors}
    chunks = list(stream_generate(*demo, "Once upon a time", **common, **options))  # pyright: ignore
    tokens = [chunk.token for chunk in chunks]
    pairs = list(itertools.pairwise(tokens))
    assert len(set(pairs)) == len(pairs)
    assert not {402, 403} & set(tokens)
    if "temperature" not in options:
        ids = mx.array([demo[1].encode("Once upon a time")])
        generated = demo[0].generate(
            ids, max_new_tokens=20, eos_token_id=None, logits_processor=processors, do_sample=False
        )
        assert generated[0, ids.shape[1] :].tolist() == tokens
    if "prompt_lookup" not in options:
        batch = helium_mlx.generate(*demo, ["Once upon a time"], **common, **options)  # pyright: ignore
        assert batch == ["".join(chunk.text for chunk in chunks)]


@pytest.mark.parametrize(
    ("processors", "said"),
    [([3], "logits_processors is"), (abs, "logits_processors is"), ([lambda ids, scores: 3], "processor returned int")],
)
def test_what_is_no_processor_is_refused(demo: Demo, processors: object, said: str) -> None:
    with pytest.raises(GenerationError, match=said):
        list(stream_generate(*demo, "A", max_tokens=3, logits_processors=processors))  # pyright: ignore
