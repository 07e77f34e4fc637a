"""Bad input: an ArgumentError of one line that names the argument, before anything is computed."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from tiny_checkpoints import CaseLoader, config_values

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import ArgumentError, KeywordError
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.kv_cache.rotating import RotatingKVCache
from helium_mlx.model.helium import (
    HeliumForCausalLM,
    HeliumForSequenceClassification,
    HeliumForTokenClassification,
    HeliumModel,
)

IDS = mx.array([[1, 5, 6, 7], [1, 8, 9, 3]])
EMBEDS = mx.zeros((2, 4, 64))
PAST = mx.array([[1, 4, 5], [1, 6, 7]])

Arguments = dict[str, object]


def tiny_config(**overrides: object) -> HeliumConfig:
    return HeliumConfig.from_dict(config_values(num_hidden_layers=2, num_key_value_heads=2, **overrides))


@pytest.fixture(scope="module")
def model() -> HeliumForCausalLM:
    return HeliumForCausalLM(tiny_config())


def filled_cache(model: HeliumForCausalLM, ids: mx.array = PAST) -> list[KVCache]:
    cache = make_cache(model)
    model(ids, past_key_values=cache)
    return cache


def refusal(call: Callable[..., object], *arguments: object, **keywords: object) -> str:
    with pytest.raises(ArgumentError) as caught:
        call(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 200
    return message


# id -> arguments, and what the message must say: the argument, what came, what was expected
INPUTS: dict[str, tuple[Arguments, list[str]]] = {
    "neither": ({"input_ids": None}, ["neither", "input_ids", "inputs_embeds"]),
    "both": ({"inputs_embeds": EMBEDS}, ["both", "input_ids", "inputs_embeds"]),
    "ids of rank 1": ({"input_ids": IDS[0]}, ["input_ids", "(4,)", "(batch, length)"]),
    "ids of rank 3": ({"input_ids": IDS[None]}, ["input_ids", "(1, 2, 4)", "(batch, length)"]),
    "no ids": ({"input_ids": mx.zeros((2, 0), mx.int32)}, ["input_ids", "(2, 0)"]),
    "no rows": ({"input_ids": mx.zeros((0, 4), mx.int32)}, ["input_ids", "(0, 4)"]),
    "float ids": ({"input_ids": IDS.astype(mx.float32)}, ["input_ids", "float32", "integers"]),
    "bool ids": ({"input_ids": IDS > 3}, ["input_ids", "bool", "integers"]),
    "a list of ids": ({"input_ids": [[1, 2]]}, ["input_ids", "list", "mx.array"]),
    "numpy ids": ({"input_ids": np.array([[1, 2]])}, ["input_ids", "ndarray", "mx.array"]),
    "an id too large": ({"input_ids": mx.array([[1, 96]])}, ["input_ids", "96", "0 to 95", "vocab_size"]),
    "an id below 0": ({"input_ids": mx.array([[1, -1]])}, ["input_ids", "-1", "0 to 95"]),
    "an id beyond int32": ({"input_ids": mx.array([[2**40]], mx.int64)}, ["input_ids", str(2**40), "0 to 95"]),
    "embeds of rank 2": ({"input_ids": None, "inputs_embeds": EMBEDS[0]}, ["inputs_embeds", "(4, 64)", "hidden_size"]),
    "embeds of another size": (
        {"input_ids": None, "inputs_embeds": EMBEDS[..., :32]},
        ["inputs_embeds", "(2, 4, 32)", "hidden_size 64"],
    ),
    "integer embeds": (
        {"input_ids": None, "inputs_embeds": EMBEDS.astype(mx.int32)},
        ["inputs_embeds", "int32", "floating-point"],
    ),
    "a mask of rank 1": ({"attention_mask": mx.ones((4,))}, ["attention_mask", "(4,)", "(2, 1, 4, 4)"]),
    "a mask of rank 3": ({"attention_mask": mx.ones((2, 4, 4))}, ["attention_mask", "(2, 4, 4)"]),
    "a short mask": ({"attention_mask": mx.ones((2, 3))}, ["attention_mask", "(2, 3)", "(2, 4)"]),
    "a mask of one row": ({"attention_mask": mx.ones((1, 4))}, ["attention_mask", "(1, 4)", "(2, 4)"]),
    "a mask of 2s": ({"attention_mask": 2 * mx.ones((2, 4))}, ["attention_mask", "0 and 1"]),
    "an additive 2-D mask": ({"attention_mask": mx.full((2, 4), -1e9)}, ["attention_mask", "0 and 1"]),
    "a NaN in a mask": ({"attention_mask": mx.full((2, 4), mx.nan)}, ["attention_mask", "0 and 1"]),
    "a list as a mask": ({"attention_mask": [[1] * 4] * 2}, ["attention_mask", "list", "mx.array"]),
    "4-D of integers": (
        {"attention_mask": 2 * mx.ones((2, 1, 4, 4), mx.int32)},
        ["attention_mask", "int32", "0 and 1", "floats"],
    ),
    "4-D of other lengths": (
        {"attention_mask": mx.zeros((2, 1, 4, 5))},
        ["attention_mask", "(2, 1, 4, 5)", "(2, 1, 4, 4)"],
    ),
    "4-D of another batch": ({"attention_mask": mx.zeros((3, 1, 4, 4))}, ["attention_mask", "(3, 1, 4, 4)"]),
    "4-D of key heads": (
        {"attention_mask": mx.zeros((2, 2, 4, 4))},
        ["attention_mask", "(2, 2, 4, 4)", "(2, 4, 4, 4)"],
    ),
    "positions of rank 1": ({"position_ids": mx.arange(4)}, ["position_ids", "(4,)", "(2, 4)"]),
    "short positions": ({"position_ids": mx.zeros((2, 3), mx.int32)}, ["position_ids", "(2, 3)", "(2, 4)"]),
    "positions of 3 rows": ({"position_ids": mx.zeros((3, 4), mx.int32)}, ["position_ids", "(3, 4)", "(2, 4)"]),
    "float positions": ({"position_ids": mx.zeros((2, 4))}, ["position_ids", "float32", "integers"]),
    "a position below 0": ({"position_ids": mx.array([[-1, 0, 1, 2]])}, ["position_ids", "-1"]),
    "a list of positions": ({"position_ids": [[0, 1, 2, 3]]}, ["position_ids", "list", "mx.array"]),
}


@pytest.mark.parametrize("case", INPUTS)
@pytest.mark.parametrize("body_only", [True, False], ids=["HeliumModel", "HeliumForCausalLM"])
def test_inputs(model: HeliumForCausalLM, case: str, body_only: bool) -> None:
    arguments, said = INPUTS[case]
    message = refusal(model.model if body_only else model, **{"input_ids": IDS, **arguments})
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("past", "arguments", "said"),
    [
        (PAST, {"attention_mask": mx.ones((2, 4))}, ["attention_mask", "(2, 4)", "(2, 7)"]),
        (PAST, {"attention_mask": mx.zeros((2, 1, 4, 4))}, ["attention_mask", "(2, 1, 4, 7)"]),
        (PAST, {"cache_position": mx.arange(4)}, ["cache_position", "[0, 1, 2, 3]", "3 to 6"]),
        (PAST, {"cache_position": mx.arange(4, 8)}, ["cache_position", "[4, 5, 6, 7]", "3 to 6"]),
        (PAST, {"cache_position": mx.array([3, 5, 4, 6])}, ["cache_position", "3 to 6"]),
        (PAST, {"cache_position": mx.arange(3, 6)}, ["cache_position", "(3,)", "(4,)"]),
        (PAST, {"cache_position": mx.arange(3, 7)[None]}, ["cache_position", "(1, 4)", "(4,)"]),
        (PAST, {"cache_position": mx.arange(3.0, 7.0)}, ["cache_position", "float32", "integers"]),
        (PAST, {"cache_position": [3, 4, 5, 6]}, ["cache_position", "list", "mx.array"]),
        (PAST, {"input_ids": mx.array([[5]])}, ["past_key_values", "2 rows", "1"]),
        (PAST[:1], {}, ["past_key_values", "1 rows", "2"]),
        (PAST, {"input_ids": mx.array([[5], [96]])}, ["input_ids", "96"]),
        (PAST, {"logits_to_keep": 5}, ["logits_to_keep", "5", "-3 to 4"]),
        (PAST, {"logits_to_keep": mx.array([4])}, ["logits_to_keep", "4", "-4 to 3"]),
        (PAST, {"labels": IDS, "logits_to_keep": 1}, ["labels", "(2, 4)", "(2, 1)"]),
        (PAST, {"labels": IDS, "shift_labels": IDS[:, 1:]}, ["shift_labels", "(2, 3)", "(2, 4)"]),
        (PAST, {"labels": IDS, "shift_labels": IDS + 90}, ["shift_labels", "0 to 95", "-100"]),
        (PAST, {"labels": IDS, "num_items_in_batch": 0}, ["num_items_in_batch", "0", "above 0"]),
        (PAST, {"labels": IDS, "num_items_in_batch": "2"}, ["num_items_in_batch", "'2'", "above 0"]),
        (PAST, {"labels": mx.array([[1, 2, 3, 96]] * 2)}, ["labels", "96", "0 to 95", "-100"]),
    ],
)
def test_behind_a_cache_nothing_is_computed(
    model: HeliumForCausalLM, past: mx.array, arguments: Arguments, said: list[str]
) -> None:
    cache = filled_cache(model, past)
    message = refusal(model, **{"input_ids": IDS, "past_key_values": cache, **arguments})
    assert all(part in message for part in said), message
    assert [layer.offset for layer in cache] == [3, 3]


def test_the_next_place_is_taken_as_a_cache_position(model: HeliumForCausalLM) -> None:
    whole = model(mx.concatenate([PAST, IDS], axis=1)).logits[:, 3:]
    for dtype in (mx.int32, mx.int64, mx.uint8):
        cache = filled_cache(model)
        continued = model(IDS, past_key_values=cache, cache_position=mx.arange(3, 7).astype(dtype)).logits
        assert mx.allclose(continued, whole, atol=1e-5)


def other_model(**overrides: object) -> HeliumForCausalLM:
    return HeliumForCausalLM(tiny_config(**overrides))


def uneven_cache(model: HeliumForCausalLM) -> list[KVCache]:
    cache = filled_cache(model)
    cache[1].trim(1)
    return cache


CACHES: dict[str, tuple[Callable[[HeliumForCausalLM], object], list[str]]] = {
    "too few layers": (lambda model: filled_cache(model)[:1], ["1 layers", "expected 2"]),
    "too many layers": (lambda model: [*filled_cache(model), *filled_cache(model)], ["4 layers", "expected 2"]),
    "no layers": (lambda model: [], ["0 layers", "expected 2"]),
    "layers at different tokens": (uneven_cache, ["[2, 3]"]),
    "caches of different kinds": (lambda model: [KVCache(), RotatingKVCache(9)], ["caches of different kinds"]),
    "one cache in all layers": (lambda model: [KVCache()] * 2, ["one cache in several layers"]),
    "other key-value heads": (
        lambda model: filled_cache(HeliumForCausalLM(HeliumConfig.from_dict(config_values(num_hidden_layers=2)))),
        ["(4, 16)", "(2, 16)"],
    ),
    "another head_dim": (
        lambda model: filled_cache(other_model(model_type="llama", head_dim=32)),
        ["(2, 32)", "(2, 16)"],
    ),
    "no caches": (lambda model: [(EMBEDS, EMBEDS)] * 2, ["list", "make_cache"]),
    "a single cache": (lambda model: filled_cache(model)[0], ["KVCache", "make_cache"]),
    "an array": (lambda model: EMBEDS, ["array", "make_cache"]),
}


@pytest.mark.parametrize("case", CACHES)
def test_caches_of_another_model(model: HeliumForCausalLM, case: str) -> None:
    make, said = CACHES[case]
    message = refusal(model, IDS, past_key_values=make(model))
    assert "past_key_values" in message
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    "keep",
    [-4, 5, True, 1.0, "1", None, mx.array([True]), mx.array([False] * 4), mx.array([[0]]), mx.array(0),
     mx.array([0.0]), mx.array([4]), mx.array([-5]), mx.array([], mx.int32)],
)  # fmt: skip
def test_logits_to_keep(model: HeliumForCausalLM, keep: object) -> None:
    assert "logits_to_keep" in refusal(model, IDS, logits_to_keep=keep)


@pytest.mark.parametrize("keep", [1, 3, -1, mx.array([True, False, True, True]), mx.array([0])])
def test_labels_are_of_the_logits_that_are_kept(model: HeliumForCausalLM, keep: object) -> None:
    assert "labels" in refusal(model, IDS, labels=IDS, logits_to_keep=keep)


def test_a_misspelled_option_of_the_loss_is_answered_with_the_nearest(model: HeliumForCausalLM) -> None:
    with pytest.raises(KeywordError, match=r"no argument shift_label; did you mean shift_labels\?"):
        model(IDS, labels=IDS, shift_label=IDS)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("keep", [0, 4])
def test_a_loss_takes_all_logits(model: HeliumForCausalLM, keep: int) -> None:
    loss = model(IDS, labels=IDS, logits_to_keep=keep).loss
    assert loss is not None
    assert mx.isfinite(loss)


# labels of tokens -> what the message must say besides "labels"
TOKEN_LABELS: dict[str, tuple[object, list[str]]] = {
    "one row": (mx.zeros((4,), mx.int32), ["(4,)", "(2, 4)"]),
    "too short": (mx.zeros((2, 3), mx.int32), ["(2, 3)", "(2, 4)"]),
    "one row for all": (mx.zeros((1, 4), mx.int32), ["(1, 4)", "(2, 4)"]),
    "floats": (mx.zeros((2, 4)), ["float32", "integers"]),
    "bools": (mx.zeros((2, 4), mx.bool_), ["bool", "integers"]),
    "a list": ([[0] * 4] * 2, ["list", "mx.array"]),
    "too large": (mx.full((2, 4), 1000), ["1000", "-100"]),
    "below 0": (mx.full((2, 4), -1), ["-1", "-100"]),
    "156, which is -100 in uint8": (mx.full((2, 4), 156, mx.uint8), ["156"]),
    "too large by 2^32": (mx.full((2, 4), 2**32 - 100, mx.uint32), [str(2**32 - 100)]),
}


@pytest.mark.parametrize("case", TOKEN_LABELS)
@pytest.mark.parametrize("head", [HeliumForCausalLM, HeliumForTokenClassification])
def test_labels_of_tokens(head: Callable[[HeliumConfig], Callable[..., object]], case: str) -> None:
    labels, said = TOKEN_LABELS[case]
    message = refusal(head(tiny_config()), IDS, labels=labels)
    assert all(part in message for part in ["labels", *said]), message


# num_labels, problem_type, labels, what the message must say besides "labels"
CLASS_LABELS: list[tuple[int, str | None, object, list[str]]] = [
    (3, None, mx.array([0, 3]), ["3", "0 to 2", "-100"]),
    (3, None, mx.array([0, -1]), ["-1", "0 to 2"]),
    (3, None, mx.array([0]), ["(1,)", "(2,)"]),
    (3, None, mx.array([0, 1, 2]), ["(3,)", "(2,)"]),
    (3, None, mx.array(1), ["()", "(2,)"]),
    (3, None, mx.array([[0, 1]]), ["(1, 2)", "(2, 1)"]),
    (3, None, [0, 1], ["list", "mx.array"]),
    (3, None, mx.array([True, False]), ["bool"]),
    (3, "single_label_classification", mx.array([0.0, 1.0]), ["float32", "integers"]),
    (3, None, mx.zeros((2, 2)), ["(2, 2)", "(2, 3)"]),
    (3, None, mx.zeros((2,)), ["(2,)", "(2, 3)"]),
    (3, None, mx.zeros((1, 3)), ["(1, 3)", "(2, 3)"]),
    (3, None, mx.full((2, 3), 2.0), ["0 to 1", "multi_label"]),
    (3, None, mx.full((2, 3), mx.nan), ["0 to 1"]),
    (3, "multi_label_classification", mx.zeros((2, 3), mx.int32), ["int32", "floating-point"]),
    (3, "regression", mx.zeros((2,)), ["(2,)", "(2, 3)"]),
    (3, "regression", mx.zeros((2, 3), mx.int32), ["int32", "floating-point"]),
    (3, "regression", mx.full((2, 3), mx.inf), ["finite"]),
    (1, None, mx.array([0, 1]), ["int32", "regression"]),
    (1, None, mx.zeros((2, 2)), ["(2, 2)", "(2,)"]),
    (1, None, mx.zeros((1, 2)), ["(1, 2)", "(2, 1)"]),
]


@pytest.mark.parametrize(("num_labels", "problem_type", "labels", "said"), CLASS_LABELS)
def test_labels_of_rows(num_labels: int, problem_type: str | None, labels: object, said: list[str]) -> None:
    model = HeliumForSequenceClassification(tiny_config(num_labels=num_labels, problem_type=problem_type))
    message = refusal(model, IDS, labels=labels)
    assert all(part in message for part in ["labels", *said]), message


def test_a_batch_without_a_pad_token_is_not_pooled() -> None:
    model = HeliumForSequenceClassification(tiny_config(pad_token_id=None))
    message = refusal(model, IDS)
    assert all(part in message for part in ["2 rows", "pad_token_id", "None"]), message
    assert model(IDS[:1]).logits.shape == (1, 2)


@pytest.mark.parametrize("head", [HeliumForSequenceClassification, HeliumForTokenClassification, HeliumModel])
def test_heads_check_their_inputs_too(head: Callable[[HeliumConfig], Callable[..., object]]) -> None:
    model = head(tiny_config())
    assert "vocab_size" in refusal(model, mx.array([[96]]))
    assert "neither" in refusal(model)
    assert "attention_mask" in refusal(model, IDS, mx.ones((2, 3)))


@pytest.mark.parametrize("dtype", [mx.int8, mx.uint8, mx.int16, mx.uint16, mx.uint32, mx.int64, mx.uint64])
def test_every_integer_dtype_is_taken(dtype: mx.Dtype) -> None:
    ids, positions = IDS.astype(dtype), mx.arange(4)[None].astype(dtype)
    for model in (other_model(), other_model(pad_token_id=300, vocab_size=301)):
        expected = model(IDS, labels=IDS, use_cache=False)
        output = model(ids, position_ids=positions, labels=IDS.astype(dtype), use_cache=False)
        assert mx.allclose(output.logits, expected.logits, atol=1e-5)
        assert mx.allclose(output.loss, expected.loss, atol=1e-5)  # pyright: ignore[reportArgumentType]


def test_unsigned_ids_are_pooled_beside_a_pad_token_that_they_cannot_reach() -> None:
    model = HeliumForSequenceClassification(tiny_config(pad_token_id=300, vocab_size=301))
    assert mx.allclose(model(IDS.astype(mx.uint8)).logits, model(IDS).logits)


@pytest.mark.parametrize("name", ["use_cache", "output_attentions", "output_hidden_states", "return_dict"])
@pytest.mark.parametrize("value", ["yes", 1, mx.array([1, 2])])
def test_a_flag_that_is_no_truth_value_is_refused(load_case: CaseLoader, name: str, value: object) -> None:
    model = load_case("helium-mha")
    cache = make_cache(model)
    with pytest.raises(ArgumentError, match=rf"^{name} is \w+; expected True, False or None$"):
        model(mx.array([[1, 2]]), past_key_values=cache, **{name: value})  # pyright: ignore[reportArgumentType]
    assert cache[0].offset == 0


def test_embeddings_and_caches_of_another_dtype_are_refused(load_case: CaseLoader) -> None:
    model = load_case("helium-mha")
    with pytest.raises(ArgumentError, match="inputs_embeds has dtype bfloat16; the model computes in float32"):
        model(inputs_embeds=mx.zeros((1, 2, model.config.hidden_size), mx.bfloat16))
    cache = make_cache(model)
    for layer in cache:
        layer.update_and_fetch(*(mx.zeros((1, 4, 3, 16), mx.bfloat16) for _ in range(2)))
    with pytest.raises(ArgumentError, match="past_key_values has dtype bfloat16; the model computes in float32"):
        model(mx.array([[1, 2]]), past_key_values=cache)
    assert cache[0].offset == 3


@pytest.mark.parametrize("value", [mx.nan, mx.inf])
def test_a_mask_that_would_make_every_logit_nan_is_refused(load_case: CaseLoader, value: float) -> None:
    with pytest.raises(ArgumentError, match="attention_mask has NaN"):
        load_case("helium-mha")(mx.array([[1, 2]]), attention_mask=mx.full((1, 1, 2, 2), value))
