"""Every option of generation with every kind of value: it is taken, or refused in one line that names it."""

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
import pytest

import helium_mlx
from helium_mlx.errors import GenerationError, HeliumError, OptionError
from helium_mlx.generation.batching import Request, batch_generate
from helium_mlx.kv_cache.disk import load_cache, save_cache
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.option_values import plain, require_number, require_switch, require_whole, token_ids
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]
Call = Callable[..., object]

PROMPT = [1, 400, 500]

# What a careless caller may give, by what it is.
VALUES: dict[str, object] = {
    "None": None, "True": True, "0": 0, "-1": -1, "3": 3, "2.5": 2.5, "nan": math.nan, "inf": math.inf,
    "-inf": -math.inf, "huge": 10**400, "text": "x", "empty": "", "digits": "3", "bytes": b"3", "list": [3],
    "nested": [[3]], "mapping": {3: 1.0}, "set": {3}, "function": len, "object": object(), "complex": 3j,
    "numpy 3": np.int64(3), "numpy 0.5": np.float32(0.5), "numpy nan": np.float64("nan"), "numpy True": np.bool_(True),
    "numpy array": np.array([3, 4]), "MLX 3": mx.array(3), "MLX array": mx.array([3, 4]), "tuple": (3,),
    "range": range(3),
}  # fmt: skip

WHOLE = {"3", "numpy 3", "MLX 3"}
IDS = {"list", "tuple", "range", "numpy array", "MLX array"}
SEQUENCE_OR_SET = IDS | {"set"}
FRACTION = {"numpy 0.5"}

# Option -> the values that it takes; any other is an error that names it.
SAMPLING: dict[str, set[str]] = {
    "temperature": WHOLE | FRACTION | {"0", "2.5"},
    "top_p": FRACTION,
    "top_k": WHOLE | {"0", "huge"},
    "min_p": FRACTION | {"0"},
    "repetition_penalty": WHOLE | FRACTION | {"2.5"},
    "repetition_context_size": WHOLE | {"None", "huge"},
    "presence_penalty": FRACTION | {"0", "-1"},
    "frequency_penalty": FRACTION | {"0", "-1"},
    "seed": WHOLE | {"None", "0"},
    "logit_bias": {"None", "mapping"},
    "banned_ids": SEQUENCE_OR_SET | {"None"},
    "logits_processors": {"None"},
    "stop": {"None", "text", "digits"},
    "ignore_eos": {"True", "numpy True"},
    "max_tokens": WHOLE | {"huge"},
    "prefill_step_size": WHOLE | {"huge"},
}
STREAM: dict[str, set[str]] = {
    **SAMPLING,
    "logprobs": WHOLE | {"0"},
    "prompt_lookup": WHOLE | {"0", "huge"},
    "cached_tokens": {"None"},
    "cache": {"None"},
    "max_kv_size": WHOLE | {"None"},
    "kv_bits": {"None"},
    "kv_group_size": set(),
    "cancel": {"None"},
    "on_progress": {"None", "function"},
}
BATCH: dict[str, set[str]] = {**SAMPLING, "batch_size": WHOLE | {"huge"}, "samples": WHOLE}
SCORE: dict[str, set[str]] = {"top_logprobs": WHOLE | {"0"}, "prefill_step_size": WHOLE | {"huge"}}
CACHE: dict[str, set[str]] = {name: STREAM[name] for name in ("max_kv_size", "kv_bits", "kv_group_size")}


def require_named(call: Call, name: str, option: str, taken: set[str]) -> None:
    """`call` a function with a value; it must be taken or refused as the table says, whichever it is."""
    value = VALUES[name]
    if name in taken:
        call(value)
        return
    with pytest.raises(HeliumError) as caught:
        call(value)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    # The model's own name for a cache.
    assert message.removeprefix("prompt 0: ").startswith((option, "past_key_values"))


@pytest.mark.parametrize("option", STREAM)
def test_stream_generate_takes_or_names_any_value_of_any_option(demo: Demo, option: str) -> None:
    stream = cast(Call, helium_mlx.stream_generate)
    for name in VALUES:
        require_named(lambda value: stream(*demo, PROMPT, **{option: value}), name, option, STREAM[option])


@pytest.mark.parametrize("option", BATCH)
def test_batches_take_or_name_any_value_of_any_option(demo: Demo, option: str) -> None:
    for name in VALUES:
        require_named(
            lambda value: cast(Call, batch_generate)(*demo, [PROMPT], **{option: value}), name, option, BATCH[option]
        )


@pytest.mark.parametrize("option", SCORE)
def test_score_takes_or_names_any_value_of_any_option(demo: Demo, option: str) -> None:
    for name in VALUES:
        require_named(
            lambda value: cast(Call, helium_mlx.score)(*demo, PROMPT, **{option: value}), name, option, SCORE[option]
        )


@pytest.mark.parametrize("option", CACHE)
def test_make_cache_takes_or_names_any_value_of_any_option(demo: Demo, option: str) -> None:
    for name in VALUES:
        require_named(lambda value: cast(Call, make_cache)(demo[0], **{option: value}), name, option, CACHE[option])


@pytest.mark.parametrize("name", VALUES)
def test_a_prompt_is_text_or_ids_and_anything_else_is_named(demo: Demo, name: str) -> None:
    for function in (helium_mlx.stream_generate, helium_mlx.score):
        taken = IDS | {"text", "digits"} if function is helium_mlx.stream_generate else IDS - {"list", "tuple"}
        taken = taken | {"text", "digits"}
        try:
            cast(Call, function)(*demo, VALUES[name])
        except HeliumError as error:
            assert name not in taken
            assert "\n" not in str(error)
        else:
            # A text without a character still has BOS.
            assert name in taken | {"empty"}


@pytest.mark.parametrize("name", VALUES)
def test_prompts_are_prompts_and_anything_else_is_named(demo: Demo, name: str) -> None:
    if name == "nested":
        assert helium_mlx.generate(*demo, cast(str, VALUES[name]), max_tokens=1)
        return
    with pytest.raises(GenerationError, match=r"^prompt"):
        list(cast("list[object]", cast(Call, batch_generate)(*demo, VALUES[name], max_tokens=1)))


@pytest.mark.parametrize("name", VALUES)
def test_caches_are_saved_to_and_loaded_from_files_and_anything_else_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save, value = cast(Call, save_cache), VALUES[name]
    calls: list[Callable[[], object]] = [
        lambda: save("x", value),
        lambda: cast(Call, load_cache)(value),
    ]
    if name not in ("text", "digits"):
        calls.append(lambda: save(value, []))
    for call in calls:
        with pytest.raises(HeliumError) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_and_a_tokenizer_that_are_none_are_named(demo: Demo) -> None:
    model, tokenizer = demo
    for function in (helium_mlx.stream_generate, helium_mlx.generate, batch_generate, helium_mlx.score):
        for wrong, name in (
            ((tokenizer, model), "model"),
            ((model, None), "tokenizer"),
            ((model, "demo"), "tokenizer"),
        ):
            with pytest.raises(GenerationError, match=f"^{name} is .*; it must be a Helium"):
                cast(Call, function)(*wrong, "A")


NUMPY: dict[str, object] = {
    "max_tokens": np.int32(12), "temperature": np.float32(0.5), "top_p": np.float64(0.75), "top_k": np.int64(20),
    "min_p": mx.array(0.0), "repetition_penalty": np.float64(1.25), "repetition_context_size": np.int64(9),
    "presence_penalty": np.float32(0.5), "frequency_penalty": mx.array(1.5),
    "seed": np.uint64(7), "logit_bias": {np.int64(401): np.float32(-2)}, "banned_ids": np.array([402, 403]),
    "stop": ["§§"], "ignore_eos": np.bool_(True), "prefill_step_size": mx.array(2),
}  # fmt: skip
PYTHON: dict[str, object] = {
    "max_tokens": 12, "temperature": 0.5, "top_p": 0.75, "top_k": 20, "min_p": 0, "repetition_penalty": 1.25,
    "presence_penalty": 0.5, "frequency_penalty": 1.5, "repetition_context_size": 9, "seed": 7,
    "logit_bias": {401: -2}, "banned_ids": {402, 403}, "stop": "§§",
    "ignore_eos": True, "prefill_step_size": 2,
}  # fmt: skip


def test_numbers_of_numpy_and_mlx_do_what_pythons_do(demo: Demo) -> None:
    generate = cast(Callable[..., str], helium_mlx.generate)
    expected = generate(*demo, PROMPT, **PYTHON)
    for prompt in (np.array(PROMPT), tuple(PROMPT), [np.int64(token) for token in PROMPT], mx.array(PROMPT)):
        assert generate(*demo, prompt, **NUMPY) == expected
    assert generate(*demo, [np.array(PROMPT)], **NUMPY) == [expected]
    plain_cache = {"max_kv_size": np.int64(40), "kv_bits": np.int64(8), "kv_group_size": np.int64(32)}
    rotating = generate(*demo, PROMPT, max_tokens=50, ignore_eos=True, **plain_cache)
    assert rotating == generate(
        *demo, PROMPT, max_tokens=50, ignore_eos=True, max_kv_size=40, kv_bits=8, kv_group_size=32
    )


def test_no_stop_is_none(demo: Demo) -> None:
    generate = cast(Callable[..., str], helium_mlx.generate)
    assert generate(*demo, PROMPT, max_tokens=5, stop=None) == generate(*demo, PROMPT, max_tokens=5)


def test_tokens_that_a_cache_holds_are_all_told_or_none(demo: Demo) -> None:
    model, tokenizer = demo
    cache = make_cache(model)
    list(helium_mlx.stream_generate(model, tokenizer, PROMPT, max_tokens=1, cache=cache))
    stream = cast(Call, helium_mlx.stream_generate)
    for told in (PROMPT, np.array(PROMPT), tuple(PROMPT), ()):
        stream(model, tokenizer, [5], cache=cache, cached_tokens=told)
    for told, said in ((PROMPT[:2], "has 2 tokens and the cache holds 3"), ([1, 2, 10**6], "token 1000000 is not")):
        with pytest.raises(GenerationError, match=f"^cached_tokens {said}"):
            stream(model, tokenizer, [5], cache=cache, cached_tokens=told)


def test_a_cache_of_several_rows_is_no_streams(demo: Demo) -> None:
    cache = make_cache(demo[0])
    demo[0](mx.array([PROMPT, PROMPT]), past_key_values=cache)
    with pytest.raises(GenerationError, match="cache holds 2 rows, and a stream is one"):
        helium_mlx.stream_generate(*demo, [5], cache=cache)


def test_a_request_may_be_wrong_too(demo: Demo) -> None:
    request = cast(Call, Request)
    wrong = [
        ({"max_tokens": 2.5}, "max_tokens is 2.5"),
        ({"samples": [1]}, "sample is 1"),
        ({"index": -1}, "index is -1"),
    ]
    for fields, said in wrong:
        with pytest.raises(GenerationError, match=said):
            cast(Call, batch_generate)(*demo, [request("A", **fields)])


def test_an_event_of_any_kind_cancels(demo: Demo) -> None:
    class Cancelled:
        def is_set(self) -> bool:
            return True

    for event in (Cancelled(), threading.Event()):
        chunks = list(helium_mlx.stream_generate(*demo, PROMPT, max_tokens=2, cancel=cast(threading.Event, event)))
        assert (chunks[-1].finish_reason == "cancelled") == isinstance(event, Cancelled)


def test_what_a_check_returns_is_pythons() -> None:
    assert [type(plain(value)) for value in (np.int8(1), np.float32(1), mx.array(1), np.bool_(1))] == [
        int,
        float,
        int,
        bool,
    ]
    assert type(require_whole("n", np.int8(1), 0)) is int
    assert type(require_number("n", 1, 0, 2, "")) is float
    assert require_switch("n", np.bool_(False)) is False
    assert token_ids("n", mx.array([1, 2]), 3) == [1, 2]
    with pytest.raises(OptionError, match=r"^n is 3; it must be a whole number from 0 to 2$"):
        require_whole("n", 3, 0, 2)
