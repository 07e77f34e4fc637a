"""Requests that go on inside a word are rows of the batch as others are, and use prefixes."""

from collections.abc import Callable, Iterator
from typing import cast

import mlx.core as mx
import pytest
from passes import Passes

import helium_mlx
from helium_mlx import GenerationError, HeliumEngine
from helium_mlx.engine.stream import EngineStream
from helium_mlx.generation.healing import HealedSampler, cut_back
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]

TEXT = "Once upon a time there was a little gi"
LONG_WORD = "A xqzvwkjhqz"


def ask(engine: HeliumEngine, prompt: object, **options: object) -> EngineStream:
    options = {"heal": True, "max_tokens": 12, "ignore_eos": True, **options}
    return cast(Callable[..., EngineStream], engine.stream)(prompt, **options)


def solo(demo: Demo, prompt: object, **options: object) -> list[int]:
    options = {"heal": True, "max_tokens": 12, "ignore_eos": True, **options}
    stream = cast(Callable[..., Iterator[helium_mlx.GenerationChunk]], helium_mlx.stream_generate)
    return [chunk.token for chunk in stream(*demo, prompt, **options)]


@pytest.fixture(scope="module", params=[None, 0], ids=["with prefixes", "without"])
def engine(request: pytest.FixtureRequest) -> Iterator[HeliumEngine]:
    with HeliumEngine("demo", dtype="float32", prefix_cache_bytes=request.param) as engine:
        yield engine


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 4}, {"max_tokens": 1}], ids=str)
def test_at_every_character_the_tokens_are_those_of_a_run_alone(
    engine: HeliumEngine, demo: Demo, options: dict[str, object]
) -> None:
    prompts = [TEXT[:end] for end in range(1, len(TEXT) + 1, 3)] + ["Zwölf Gänsefü", "l'été à "]
    streams = [ask(engine, prompt, **options) for prompt in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        assert stream.result().tokens == solo(demo, prompt, **options), prompt


def test_a_word_of_several_tokens_is_held_token_by_token(engine: HeliumEngine, demo: Demo) -> None:
    assert cut_back(demo[1], demo[1].encode(LONG_WORD)) > 2
    result = ask(engine, LONG_WORD, max_tokens=20).result()
    assert result.tokens == solo(demo, LONG_WORD, max_tokens=20)
    assert result.generated_tokens == 20


def test_the_next_keystroke_computes_one_token_of_the_prompt(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(demo[0], monkeypatch)
    with HeliumEngine("demo", dtype="float32") as engine:
        ask(engine, TEXT[:-1], max_tokens=2).result()
        passes.shapes.clear()
        result = ask(engine, TEXT, max_tokens=2).result()
    assert result.cached_tokens == result.prompt_tokens - 1
    # The prompt's last token, and the one that was held.
    assert passes.shapes == [(1, 1), (1, 1)]


def test_rows_decode_together(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(demo[0], monkeypatch)
    with HeliumEngine("demo", dtype="float32") as engine:
        engine.pause()
        streams = [ask(engine, prompt, max_tokens=30) for prompt in (TEXT, "Es war ein", "C'era una vol")]
        engine.resume()
        for stream in streams:
            stream.result()
    assert max(rows for rows, _ in passes.shapes) == 3


def test_tokens_that_are_held_take_the_steps_that_all_rows_share(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, options = Passes(demo[0], monkeypatch), {"max_tokens": 8, "temperature": 1.0}
    with HeliumEngine("demo", dtype="float32") as engine:
        engine.pause()
        streams = [ask(engine, LONG_WORD, seed=seed, **options) for seed in range(4)]
        engine.resume()
        tokens = [stream.result().tokens for stream in streams]
    ids = demo[1].encode(LONG_WORD)
    assert passes.shapes == [(4, len(ids) - cut_back(demo[1], ids)), *[(4, 1)] * 7]
    assert tokens == [solo(demo, LONG_WORD, seed=seed, **options) for seed in range(4)]


def test_a_step_that_fails_where_a_held_token_is_waited_for_is_tried_again(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    among, count = HealedSampler.among, 0

    def failing_once(sampler: HealedSampler, logits: mx.array) -> mx.array:
        nonlocal count
        count += 1
        if count == 3:
            raise RuntimeError("of the device")
        return among(sampler, logits)

    expected = [solo(demo, LONG_WORD), solo(demo, TEXT)]
    monkeypatch.setattr(HealedSampler, "among", failing_once)
    with HeliumEngine("demo", dtype="float32") as engine:
        streams = [ask(engine, prompt) for prompt in (LONG_WORD, TEXT)]
        assert [stream.result().tokens for stream in streams] == expected
    assert count > 3


def test_a_request_for_which_nothing_is_left_ends_alone(demo: Demo) -> None:
    everything = [index for index in range(len(demo[1])) if demo[1].token_bytes(index)[:1] == b" "]
    with HeliumEngine("demo", dtype="float32") as engine:
        other, barred = ask(engine, TEXT), ask(engine, TEXT, banned_ids=everything)
        with pytest.raises(GenerationError, match="heal: no token that is not banned begins with ' gi', the end of"):
            barred.result()
        assert other.result().tokens == solo(demo, TEXT)


@pytest.mark.parametrize("keep_caches", [False, True])
@pytest.mark.parametrize("prompt", [TEXT, LONG_WORD])
def test_a_paused_engine_goes_on_with_the_same_tokens(
    engine: HeliumEngine, demo: Demo, prompt: str, keep_caches: bool
) -> None:
    stream = ask(engine, prompt, max_tokens=40)
    first = next(stream).token
    engine.pause(keep_caches=keep_caches)
    engine.resume()
    assert [first, *(chunk.token for chunk in stream)] == solo(demo, prompt, max_tokens=40)
    assert stream.tokens[0] == first


def test_alternatives_to_a_held_token_are_those_that_may_come(engine: HeliumEngine, demo: Demo) -> None:
    chunk = next(ask(engine, TEXT, logprobs=5))
    pieces = [demo[1].token_bytes(token) for token in chunk.top_logprobs]
    assert len(pieces) > 1
    assert all(piece.startswith(b" gi") or b" gi".startswith(piece) for piece in pieces)
    # As probable as they are once it is known how the word begins.
    assert sum(2.718281828**value for value in chunk.top_logprobs.values()) == pytest.approx(1, abs=0.2)
    assert chunk.logprob == pytest.approx(chunk.top_logprobs[chunk.token])
