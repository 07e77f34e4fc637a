"""An evaluation that is killed goes on to the same figures. `kills.py` does the same as often as one likes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import kills


def test_an_evaluation_killed_at_any_moment_ends_with_the_same_figures(tmp_path: Path) -> None:
    kills.check(2, 0, tmp_path, limit=4)
