import math

import mlx.core as mx
import pytest

from helium_mlx.model.losses import LogSum, RunningDivergence


def slow_divergence(reference: list[float], candidate: list[float]) -> float:
    p, q = ([math.exp(z - max(row)) for z in row] for row in (reference, candidate))
    p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("part", [1, 7, 50])
def test_parts_give_the_divergence_of_the_whole(part: int) -> None:
    reference, candidate = (4 * mx.random.normal((3, 50), key=mx.random.key(i)) + 100 * i for i in range(2))
    running = RunningDivergence(3)
    for first in range(0, 50, part):
        running.add(reference[:, first : first + part], candidate[:, first : first + part])
    rows = zip(reference.tolist(), candidate.tolist(), strict=True)  # pyright: ignore[reportArgumentType]
    expected = sum(slow_divergence(p, q) for p, q in rows) / 3  # pyright: ignore[reportArgumentType]
    assert running.mean == pytest.approx(expected, rel=1e-4)


def test_equal_logits_have_none() -> None:
    logits, running = mx.random.normal((2, 9), key=mx.random.key(0)), RunningDivergence(2)
    running.add(logits, logits)
    assert running.mean == pytest.approx(0, abs=1e-6)


def test_log_sum_does_not_overflow() -> None:
    total = LogSum(1)
    total.add(mx.array([[-500.0, 3.0]]))
    total.add(mx.array([[500.0, 500.0]]))
    assert total.value.item() == pytest.approx(500 + math.log(2))
