import mlx.core as mx
import pytest

from helium_mlx.diagnostics.selfcheck_cases import ROPE_TYPES
from helium_mlx.model.rope import RotaryEmbedding

HEAD_DIM = 8


def make(interleaved: bool = True, **parameters: object) -> RotaryEmbedding:
    values = {"rope_type": "default", "rope_theta": 10000.0, **parameters}
    return RotaryEmbedding(values, head_dim=HEAD_DIM, max_position_embeddings=64, interleaved=interleaved)


def test_interleaved_rotates_neighbours_and_half_split_rotates_halves() -> None:
    x = mx.zeros((1, 1, 1, HEAD_DIM))
    x[..., 0] = 1
    moved = [mx.abs(make(interleaved).at(1, 1)(x)[0, 0, 0]).tolist() for interleaved in (True, False)]
    assert [[i for i, value in enumerate(row) if value > 0] for row in moved] == [[0, 1], [0, 4]]  # pyright: ignore


@pytest.mark.parametrize("interleaved", [True, False])
def test_scores_depend_on_distance_only(interleaved: bool) -> None:
    rope, x = make(interleaved), mx.random.normal((2, 1, 1, 1, HEAD_DIM))
    near, far = ((rope.at(5 + n, 1)(x[0]) * rope.at(2 + n, 1)(x[1])).sum().item() for n in (0, 40))
    assert near == pytest.approx(far, abs=1e-5)


@pytest.mark.parametrize("interleaved", [True, False])
def test_explicit_positions_equal_an_offset(interleaved: bool) -> None:
    rope, x = make(interleaved), mx.random.normal((2, 3, 4, HEAD_DIM))
    by_offset = rope.at(7, 4)(x)
    by_ids = rope.at_positions(mx.array([[7, 8, 9, 10]]))(x)
    assert mx.allclose(by_offset, by_ids, atol=1e-6)


def test_dynamic_stretches_only_past_the_context() -> None:
    x, plain = mx.random.normal((1, 1, 80, HEAD_DIM)), make()
    dynamic = make(rope_type="dynamic", factor=2.0)
    assert mx.array_equal(dynamic.at(0, 64)(x[:, :, :64]), plain.at(0, 64)(x[:, :, :64]))
    assert not mx.allclose(dynamic.at(0, 80)(x), plain.at(0, 80)(x), atol=1e-2)


def test_longrope_changes_factors_past_the_original_context() -> None:
    rope = make(
        rope_type="longrope",
        short_factor=[1.0] * 4,
        long_factor=[4.0] * 4,
        original_max_position_embeddings=16,
        factor=4.0,
    )
    x, plain = mx.random.normal((1, 1, 17, HEAD_DIM)), make()
    assert mx.array_equal(rope.at(0, 16)(x[:, :, :16]), plain.at(0, 16)(x[:, :, :16]))
    stretched = make(rope_type="linear", factor=4.0)
    assert mx.allclose(rope.at(0, 17)(x), stretched.at(0, 17)(x), atol=1e-6)


def test_tables_keep_the_dtype() -> None:
    x = mx.zeros((1, 1, 3, HEAD_DIM), mx.bfloat16)
    assert make().at(0, 3)(x).dtype == mx.bfloat16


@pytest.mark.parametrize("offset", [0, 1, 77, 4000])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_single_token_is_rotated_alike_without_gradients(offset: int, dtype: mx.Dtype) -> None:
    rope = RotaryEmbedding(
        {"rope_type": "default", "rope_theta": 1e5}, head_dim=64, max_position_embeddings=4096, interleaved=True
    )
    x = mx.random.normal((2, 3, 1, 64), key=mx.random.key(offset)).astype(dtype)
    expected, found = rope.at(offset, 1)(x), rope.at(offset, 1, differentiable=False)(x)
    assert found.dtype == dtype
    assert mx.allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("rope_type", ROPE_TYPES)
@pytest.mark.parametrize("length", [1, 6])
def test_an_offset_in_an_array_rotates_as_a_number_does(rope_type: str, interleaved: bool, length: int) -> None:
    parameters = {**ROPE_TYPES[rope_type], "rope_type": rope_type, "rope_theta": 1000.0}
    rope = RotaryEmbedding(parameters, head_dim=16, max_position_embeddings=64, interleaved=interleaved)
    x = mx.random.normal((1, 3, length, 16), key=mx.random.key(0))
    # Before, at and after the end of the original context, which is 8 here.
    for offset in (0, 2, 8 - length, 9 - length, 40):
        rotate = rope.at_array(mx.array([offset]), length, mx.array([offset + length]))
        assert mx.allclose(rotate(x), rope.at(offset, length)(x), rtol=1e-6, atol=1e-6)
