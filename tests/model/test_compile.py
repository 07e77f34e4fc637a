"""MLX's usual compiled step: a forward pass and a training step inside of `mx.compile` give what they give outside."""

import functools
from collections.abc import Callable
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from measures import relative_error
from tiny_checkpoints import config_values

from helium_mlx import (
    HeliumConfig,
    HeliumForCausalLM,
    HeliumForSequenceClassification,
    HeliumForTokenClassification,
    backend,
)
from helium_mlx.diagnostics.selfcheck_cases import ROPE_TYPES
from helium_mlx.errors import ArgumentError

IDS = mx.array([[1, 5, 6, 7, 8, 9], [3, 3, 1, 5, 6, 7]])
MASK = mx.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
POSITIONS = mx.array([[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3]])
HEADS: dict[type, mx.array] = {
    HeliumForCausalLM: IDS,
    HeliumForSequenceClassification: mx.array([0, 1]),
    HeliumForTokenClassification: IDS % 2,
}

Model = HeliumForCausalLM | HeliumForSequenceClassification | HeliumForTokenClassification
Step = Callable[..., mx.array]


def new_model(kind: type = HeliumForCausalLM, **overrides: object) -> Model:
    mx.random.seed(0)
    return cast(Model, kind(HeliumConfig.from_dict(config_values(classifier_dropout=0.0, **overrides))))


def losses_of(model: Model, labels: mx.array, *, is_compiled: bool) -> list[float]:
    """Three steps of training, written as MLX's documentation writes them."""
    optimizer = optim.SGD(learning_rate=0.1)
    model.train()
    state = [model.state, optimizer.state, mx.random.state]

    def loss_of(model: Model, *inputs: mx.array) -> mx.array:
        loss = model(inputs[0], inputs[1], inputs[2], labels=inputs[3]).loss
        assert loss is not None
        return loss

    def step(*inputs: mx.array) -> mx.array:
        loss, gradients = nn.value_and_grad(model, loss_of)(model, *inputs)
        optimizer.update(model, gradients)
        return loss

    run = functools.partial(mx.compile, inputs=state, outputs=state)(step) if is_compiled else step
    losses = []
    for _ in range(3):
        loss = run(IDS, MASK, POSITIONS, labels)
        mx.eval(state, loss)
        losses.append(cast(float, loss.item()))
    return losses


@pytest.mark.parametrize("kind", HEADS, ids=lambda kind: kind.__name__)
def test_a_compiled_step_of_training_is_the_plain_one(kind: type) -> None:
    plain, compiled = (
        losses_of(new_model(kind), HEADS[kind], is_compiled=is_compiled) for is_compiled in (False, True)
    )
    assert compiled == pytest.approx(plain, rel=1e-5)
    assert compiled[2] < compiled[0]


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_labels_of_other_problems_are_taken(problem_type: str) -> None:
    labels = mx.array([[0.0, 1.0], [1.0, 0.0]])
    plain, compiled = (
        losses_of(
            new_model(HeliumForSequenceClassification, problem_type=problem_type), labels, is_compiled=is_compiled
        )
        for is_compiled in (False, True)
    )
    assert compiled == pytest.approx(plain, rel=1e-5)


INPUTS: dict[str, tuple[mx.array] | tuple[mx.array, mx.array] | tuple[()]] = {
    "ids": (),
    "a padding mask": (MASK,),
    "a mask and positions": (MASK, POSITIONS),
    "a boolean mask": (mx.tril(mx.ones((1, 1, 6, 6), mx.bool_)),),
    "an added mask": (mx.where(mx.tril(mx.ones((1, 1, 6, 6), mx.bool_)), 0.0, -1e9),),
}


@pytest.mark.parametrize("name", INPUTS)
def test_a_compiled_forward_pass_is_the_plain_one(name: str) -> None:
    model = cast(HeliumForCausalLM, new_model())

    def logits_of(ids: mx.array, mask: mx.array | None = None, positions: mx.array | None = None) -> mx.array:
        return model(ids, mask, positions).logits

    assert relative_error(mx.compile(logits_of)(IDS, *INPUTS[name]), logits_of(IDS, *INPUTS[name])) < 1e-6


@pytest.mark.parametrize("rope_type", ROPE_TYPES)
@pytest.mark.parametrize("first", [0, 3, 40])
def test_positions_that_are_traced_give_the_rotation_of_the_same_numbers(rope_type: str, first: int) -> None:
    parameters = {"rope_type": rope_type, "rope_theta": 1000.0, **ROPE_TYPES[rope_type]}
    model = cast(HeliumForCausalLM, new_model(rope_parameters=parameters, max_position_embeddings=32))
    # One text, and two of them packed.
    for positions in (mx.arange(first, first + 6)[None], mx.array([[0, 1, 2, first, first + 1, first + 2]])):
        compiled = mx.compile(lambda ids, at: model(ids, position_ids=at, use_cache=False).logits)
        assert (
            relative_error(compiled(IDS[:1], positions), model(IDS[:1], position_ids=positions, use_cache=False).logits)
            < 1e-5
        )


def test_shapes_are_still_checked_and_values_of_what_is_not_traced() -> None:
    model = cast(HeliumForCausalLM, new_model())
    with pytest.raises(ArgumentError, match="attention_mask has shape"):
        mx.compile(lambda ids: model(ids, MASK[:, :3]).logits)(IDS)
    with pytest.raises(ArgumentError, match="input_ids has dtype float32"):
        mx.compile(lambda ids: model(ids).logits)(IDS.astype(mx.float32))
    with pytest.raises(ArgumentError, match="labels has the value 99"):
        mx.compile(lambda ids: cast(mx.array, model(ids, labels=mx.full((2, 6), 99)).loss))(IDS)


def test_errors_of_what_is_computed_are_not_taken_for_tracing() -> None:
    assert backend.value_of(mx.array(2)) == 2
    with pytest.raises(ValueError, match="length-1"):
        backend.value_of(mx.array([1, 2]))
