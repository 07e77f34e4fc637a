"""The parity grid, case by case; `python tests/parity/grid.py` prints the same as a table."""

import sys
from itertools import combinations, product
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parent))

from grid import GRID_SLACK, mean_ratio, measure, measure_head

from helium_mlx.diagnostics.selfcheck_cases import AXES, HEAD_CASES, Case, HeadCase, grid
from helium_mlx.diagnostics.selfcheck_runs import Measurement

pytestmark = pytest.mark.parity

RATIOS: dict[str, list[Measurement]] = {}


def assert_within_bounds(measurements: list[Measurement]) -> None:
    failed = [f"{m.what} ({m.dtype}): {m.error:.2e} > {m.limit:g}" for m in measurements if not m.passed]
    assert not failed, failed


@pytest.mark.parametrize("case", grid(), ids=lambda case: case.name)
def test_grid(case: Case) -> None:
    measurements = measure(case)
    RATIOS[case.name] = [m for m in measurements if m.dtype == "ratio"]
    assert_within_bounds(measurements)


def test_bfloat16_is_no_worse_than_torchs_own_over_the_grid() -> None:
    for case in grid():
        if case.dtype == "bfloat16" and case.name not in RATIOS:
            RATIOS[case.name] = [m for m in measure(case) if m.dtype == "ratio"]
    assert mean_ratio([m for group in RATIOS.values() for m in group]) <= GRID_SLACK


@pytest.mark.parametrize("case", HEAD_CASES, ids=lambda case: case.name)
def test_heads(case: HeadCase) -> None:
    assert_within_bounds(measure_head(case))


def test_every_two_values_of_two_axes_meet() -> None:
    cases = [vars(case) for case in grid()]
    for a, b in combinations(AXES, 2):
        met = {(case[a], case[b]) for case in cases}
        missing = set(product(AXES[a], AXES[b])) - met
        if (a, b) == ("mask", "feed"):
            missing -= {("packed positions", "continued from a cache"), ("packed positions", "chunked")}
        assert not missing
