"""Losses against values worked out by hand; against torch's they are in `tests/parity/test_grid.py`."""

import math

import mlx.core as mx
import pytest
from tiny_checkpoints import config_values

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.model.helium import HeliumForCausalLM, HeliumForSequenceClassification, HeliumForTokenClassification
from helium_mlx.model.losses import causal_lm_loss, cross_entropy, infer_problem_type, sequence_classification_loss

LOGITS = mx.log(mx.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))


def test_cross_entropy_is_the_mean_negative_log_likelihood() -> None:
    assert cross_entropy(LOGITS, mx.array([0, 2])).item() == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)


def test_minus_100_is_neither_counted_nor_divided_by() -> None:
    assert cross_entropy(LOGITS, mx.array([-100, 2])).item() == pytest.approx(-math.log(0.8))


def test_no_label_at_all_gives_nan() -> None:
    assert math.isnan(cross_entropy(LOGITS, mx.array([-100, -100])).item())  # pyright: ignore[reportArgumentType]


def test_an_ignored_token_has_no_gradient() -> None:
    gradient = mx.grad(lambda logits: cross_entropy(logits, mx.array([-100, 2])))(LOGITS)
    assert mx.array_equal(gradient[0], mx.zeros(3))
    assert mx.allclose(gradient[1], mx.array([0.1, 0.1, -0.2]), atol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    assert cross_entropy(mx.array([[1e4, 0.0]]), mx.array([1])).item() == pytest.approx(1e4)
    several = sequence_classification_loss(
        mx.array([[1e4, -1e4]]), mx.array([[0.0, 1.0]]), "multi_label_classification"
    )
    assert several.item() == pytest.approx(1e4)


def test_a_causal_lm_predicts_the_next_token() -> None:
    logits = mx.log(mx.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]]]))
    loss = causal_lm_loss(logits, mx.array([[1, 0, 2]]))
    assert loss.item() == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)


@pytest.mark.parametrize("dtype", [mx.int32, mx.int64, mx.uint8])
def test_a_single_token_predicts_nothing_and_its_loss_is_nan_as_in_transformers(dtype: mx.Dtype) -> None:
    model = HeliumForCausalLM(HeliumConfig.from_dict(config_values()))
    output = model(mx.array([[1], [5]]), labels=mx.array([[1], [5]], dtype))
    assert output.loss is not None
    assert math.isnan(output.loss.item())  # pyright: ignore[reportArgumentType]
    assert output.logits.shape == (2, 1, 96)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_losses_are_float32(dtype: mx.Dtype) -> None:
    assert cross_entropy(LOGITS.astype(dtype), mx.array([0, 2])).dtype == mx.float32
    for problem_type in ("regression", "multi_label_classification"):
        assert sequence_classification_loss(LOGITS.astype(dtype), LOGITS * 0, problem_type).dtype == mx.float32


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_regression_is_the_mean_square_and_broadcasts_nothing(shape: tuple[int, ...]) -> None:
    logits, labels = mx.array([[1.0], [2.0]]), mx.array([3.0, 2.5]).reshape(shape)
    assert sequence_classification_loss(logits, labels, "regression").item() == pytest.approx((4 + 0.25) / 2)


def test_several_labels_are_a_binary_cross_entropy_each() -> None:
    logits, labels = mx.array([[0.0, 2.0]]), mx.array([[1.0, 0.0]])
    expected = (math.log(2) + math.log(1 + math.exp(2))) / 2
    loss = sequence_classification_loss(logits, labels, "multi_label_classification")
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("num_labels", "labels", "expected"),
    [
        (1, mx.array([0.5]), "regression"),
        (3, mx.array([2]), "single_label_classification"),
        (3, mx.array([[0.0, 1.0, 1.0]]), "multi_label_classification"),
    ],
)
def test_the_problem_type_is_inferred_as_transformers_does(num_labels: int, labels: mx.array, expected: str) -> None:
    assert infer_problem_type(num_labels, labels) == expected


def test_inferring_leaves_the_config_alone() -> None:
    model = HeliumForSequenceClassification(HeliumConfig.from_dict(config_values(num_labels=3)))
    first = model(mx.array([[1, 5]]), labels=mx.array([2])).loss
    assert model.config.problem_type is None
    second = model(mx.array([[1, 5]]), labels=mx.array([[0.0, 0.0, 1.0]])).loss
    assert first is not None
    assert second is not None
    assert first.item() != second.item()


@pytest.mark.parametrize(("num_labels", "problem_type"), [(1, "regression"), (3, "single_label_classification")])
def test_a_configured_problem_type_decides(num_labels: int, problem_type: str) -> None:
    config = HeliumConfig.from_dict(config_values(num_labels=num_labels, problem_type=problem_type))
    model = HeliumForSequenceClassification(config)
    labels = mx.array([1.5]) if problem_type == "regression" else mx.array([2])
    output = model(mx.array([[1, 5]]), labels=labels)
    assert output.loss is not None
    expected = sequence_classification_loss(output.logits, labels, problem_type)
    assert output.loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("ids", "rightmost"),
    [
        ([1, 5, 6, 7], 3),
        ([1, 5, 3, 3], 1),
        ([3, 3, 5, 6], 3),
        ([3, 5, 3, 3], 1),
        ([5, 3, 6, 3], 2),
        ([3, 3, 3, 3], 0),
    ],
)
def test_the_rightmost_token_that_is_not_padding_is_pooled(ids: list[int], rightmost: int) -> None:
    model = HeliumForSequenceClassification(HeliumConfig.from_dict(config_values()))
    every = model.score(model.model(mx.array([ids])).last_hidden_state)
    batch = model(mx.array([[1, 2, 4, 5], ids])).logits
    assert mx.allclose(batch[1], every[0, rightmost], atol=1e-6)


def test_embeddings_are_pooled_at_the_last_place() -> None:
    model = HeliumForSequenceClassification(HeliumConfig.from_dict(config_values()))
    embeds = model.model.embed_tokens(mx.array([[1, 5, 3, 3]]))
    every = model.score(model.model(inputs_embeds=embeds).last_hidden_state)
    assert mx.allclose(model(inputs_embeds=embeds).logits, every[:, -1], atol=1e-6)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [({}, 0.1), ({"hidden_dropout": 0.2}, 0.2), ({"classifier_dropout": 0.3, "hidden_dropout": 0.2}, 0.3),
     ({"classifier_dropout": 0.0, "hidden_dropout": 0.2}, 0.0)],
)  # fmt: skip
def test_the_classifier_takes_the_rate_that_transformers_takes(rates: dict[str, float], expected: float) -> None:
    model = HeliumForTokenClassification(HeliumConfig.from_dict(config_values(**rates)))
    assert 1 - model.dropout._p_1 == pytest.approx(expected)
