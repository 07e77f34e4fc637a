"""The load and fault test of `examples/engine_load.py`, bounded; and that it finds what it looks for."""

import sys
import threading

import pytest
from processes import EXAMPLES, run_example

sys.path.insert(0, str(EXAMPLES))

from engine_load import Case, Tally, judge, part_problem, whole_problem

from helium_mlx import HeliumError


def test_many_requests_with_faults_are_all_as_alone_and_leave_nothing() -> None:
    # Six waves, the least there can be: how many there are does not depend on the time that they take.
    result = run_example("engine_load.py", "--seconds", "0", "--wave", "30", "--seed", "100")
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
    *_, last = result.stdout.splitlines()
    assert last == "180 requests, none lost, all as alone; nothing grows"


def test_a_difference_is_found() -> None:
    case = Case("A", {}, [1, 2, 3], "abc", "length")
    assert whole_problem(case, [1, 2, 3], "abc", "length") is None
    for wrong in (([1, 2], "abc", "length"), ([1, 2, 3], "ab", "length"), ([1, 2, 3], "abc", "eos")):
        assert whole_problem(case, *wrong) is not None
    assert part_problem(case, [1, 2], "cancelled") is None
    assert part_problem(case, [1, 3], "cancelled") is not None
    assert part_problem(case, [1, 2], "stop") is not None


def test_what_is_lost_wrong_or_left_is_found() -> None:
    tally = Tally()
    tally.note("whole", 3, None)
    judge(tally, 1, [], [])
    with pytest.raises(HeliumError, match="2 requests were made, and 1 ended"):
        judge(tally, 2, [], [])
    with pytest.raises(HeliumError, match="threads are left: stray"):
        judge(tally, 1, [threading.Thread(name="stray")], [])
    with pytest.raises(HeliumError, match=r"files are left: a\.state"):
        judge(tally, 1, [], ["a.state"])
    tally.note("slow", 3, "another token")
    with pytest.raises(HeliumError, match="1 requests went wrong, the first slow: another token"):
        judge(tally, 2, [], [])
