"""KL divergence against sums in plain Python, in double precision."""

import math
from typing import cast

import mlx.core as mx
import pytest
from compared_checkpoints import plain_kl, plain_logprobs

from helium_mlx.model.losses import kl_divergence, logprobs, mean_divergence


def plain_divergence(reference: list[float], candidate: list[float]) -> float:
    return plain_kl(plain_logprobs(reference), plain_logprobs(candidate))


def rows(array: mx.array) -> list[list[float]]:
    return cast("list[list[float]]", array.astype(mx.float32).tolist())


def test_two_coins_have_the_divergence_worked_out_by_hand() -> None:
    # p = (1/2, 1/2), q = (3/4, 1/4): 1/2 log(2/3) + 1/2 log 2 = 1/2 log(4/3).
    p, q = mx.array([0.0, 0.0]), mx.array([math.log(3), 0.0])
    assert kl_divergence(p, q).item() == pytest.approx(0.5 * math.log(4 / 3), rel=1e-6)
    assert kl_divergence(q, p).item() == pytest.approx(0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2), rel=1e-6)


@pytest.mark.parametrize("noise", [1.0, 0.1, 0.01, 0.003])
def test_small_divergences_keep_their_digits(noise: float) -> None:
    mx.random.seed(1)
    reference = 3 * mx.random.normal((4, 20_000))
    candidate = reference + noise * mx.random.normal(reference.shape)
    expected = [plain_divergence(p, q) for p, q in zip(rows(reference), rows(candidate), strict=True)]
    assert kl_divergence(reference, candidate).tolist() == pytest.approx(expected, rel=1e-4)


def test_a_constant_added_to_logits_changes_nothing() -> None:
    mx.random.seed(2)
    reference = mx.random.normal((3, 50))
    assert max(rows(kl_divergence(reference, reference + 40)[None])[0]) < 1e-10
    assert kl_divergence(reference, reference).tolist() == [0, 0, 0]


@pytest.mark.parametrize("distance", [10.0, 25.0, 60.0, 120.0, 1000.0])
def test_distributions_that_hardly_overlap(distance: float) -> None:
    reference, candidate = [distance, 0.0, -3.0], [0.0, distance, -3.0]
    ours = kl_divergence(mx.array(reference), mx.array(candidate)).item()
    assert ours == pytest.approx(plain_divergence(reference, candidate), rel=1e-5)


def test_half_precision_is_widened_first() -> None:
    mx.random.seed(3)
    reference, candidate = (mx.random.normal((2, 300)).astype(mx.bfloat16) for _ in range(2))
    expected = [plain_divergence(p, q) for p, q in zip(rows(reference), rows(candidate), strict=True)]
    assert kl_divergence(reference, candidate).tolist() == pytest.approx(expected, rel=1e-5)
    assert logprobs(reference).dtype == mx.float32
    assert logprobs(reference)[0].tolist() == pytest.approx(plain_logprobs(rows(reference)[0]), abs=1e-5)


def test_the_mean_is_over_positions_and_not_over_windows() -> None:
    def reference(ids: mx.array) -> mx.array:
        return mx.zeros((*ids.shape, 2))

    def candidate(ids: mx.array) -> mx.array:
        # 3/4 and 1/4 where the token is 1, like the reference elsewhere.
        return mx.stack([mx.where(ids == 1, math.log(3), 0.0), mx.zeros(ids.shape)], axis=-1)

    windows = [mx.array([[1, 1, 1]]), mx.array([[0, 0], [0, 0], [0, 1]])]
    assert mean_divergence(reference, candidate, windows) == pytest.approx(4 / 9 * 0.5 * math.log(4 / 3), rel=1e-6)
    assert math.isnan(mean_divergence(reference, candidate, []))
