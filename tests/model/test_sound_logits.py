"""Logits that no token should be chosen by, at any step of `model.generate` and anywhere in a text that is scored."""

import math
from collections.abc import Callable
from typing import cast

import mlx.core as mx
import pytest
from tiny_checkpoints import CaseLoader

import helium_mlx
from helium_mlx import HeliumForCausalLM, HeliumTokenizer
from helium_mlx.errors import GenerationError
from helium_mlx.model.sound_logits import are_sound, require_sound

# Options come from dicts, whose values have no common type.
generate = cast("Callable[..., mx.array]", HeliumForCausalLM.generate)

MESSAGE = "the model's logits are NaN, infinite or all the same"
PROMPT = mx.array([[1, 20, 30, 20, 30, 20], [1, 7, 8, 9, 10, 11]])


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_a_row_is_sound_if_its_highest_is_a_number(dtype: mx.Dtype) -> None:
    rows = [[1.0, 2.0], [math.nan, 2.0], [1.0, math.inf], [0.0, 0.0], [-math.inf, 1.0], [-math.inf, -math.inf]]
    assert are_sound(mx.array(rows, dtype)).tolist() == [True, False, False, True, True, False]


def test_one_row_that_is_not_sound_is_an_error() -> None:
    require_sound(mx.array([True, True]))
    require_sound(mx.array(True))
    for sound in (mx.array([True, False]), mx.array(False)):
        with pytest.raises(GenerationError, match=MESSAGE):
            require_sound(sound)


def broken_after(model: HeliumForCausalLM, steps: int) -> HeliumForCausalLM:
    """Return the model with an embedding that is NaN for the token that greedy decoding comes to after `steps`."""
    ids = cast("list[list[int]]", generate(model, PROMPT[:1], max_new_tokens=steps, eos_token_id=None).tolist())[0]
    assert ids[-1] not in ids[:-1], "the token has to be new, so that the steps before are sound"
    model.model.embed_tokens.weight[ids[-1]] = math.nan
    return model


@pytest.fixture
def model(load_case: CaseLoader) -> HeliumForCausalLM:
    original = load_case("helium-mha")
    copy = HeliumForCausalLM(original.config)
    copy.update(original.parameters())
    copy.model.embed_tokens.weight = mx.array(original.model.embed_tokens.weight)
    return copy


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_k": 1}, {"use_cache": False}], ids=str)
@pytest.mark.parametrize("steps", [1, 2])
def test_every_step_of_generate_is_looked_at(model: HeliumForCausalLM, options: dict[str, bool], steps: int) -> None:
    broken = broken_after(model, steps)
    generate(broken, PROMPT[:1], max_new_tokens=steps, eos_token_id=None, **options)
    for prompt in (PROMPT[:1], PROMPT):
        with pytest.raises(GenerationError, match=MESSAGE):
            generate(broken, prompt, max_new_tokens=steps + 3, eos_token_id=None, **options)


def test_what_a_row_computes_after_its_end_is_not_looked_at(model: HeliumForCausalLM) -> None:
    ids = cast("list[list[int]]", generate(model, PROMPT, max_new_tokens=4, eos_token_id=None).tolist())
    eos = ids[0][6]
    assert eos not in ids[1][6:]
    # The first row ends at once, and is filled with this id.
    pad = next(i for i in range(60, 96) if all(i not in row for row in ids))
    model.model.embed_tokens.weight[pad] = math.nan
    result = generate(model, PROMPT, max_new_tokens=4, eos_token_id=eos, pad_token_id=pad)
    assert result.tolist() == [[*ids[0][:7], pad, pad, pad], ids[1]]


@pytest.mark.parametrize("place", [1, 3, 70])
def test_a_score_of_what_is_not_a_number_is_refused(place: int) -> None:
    model, tokenizer = helium_mlx.load("demo", dtype="float32")
    ids = [1, *range(100, 200)]
    model.model.embed_tokens.weight[ids[place]] = math.nan
    assert isinstance(tokenizer, HeliumTokenizer)
    helium_mlx.score(model, tokenizer, ids[: place + 1])
    with pytest.raises(GenerationError, match=MESSAGE):
        helium_mlx.score(model, tokenizer, ids)
