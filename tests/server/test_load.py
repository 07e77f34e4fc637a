"""The load test of `examples/serve_load.py`, bounded; and that it finds what it looks for."""

import sys

import pytest
from processes import EXAMPLES, run_example

sys.path.insert(0, str(EXAMPLES))

from serve_load import Case, Tally, judge, problem_of

from helium_mlx import HeliumError

CASE = Case({"prompt": "a"}, " b c")
STEADY = [{"resident": 10**8, "threads": 9}] * 6


def test_clients_that_stall_hang_up_and_come_back_lose_nothing() -> None:
    result = run_example("serve_load.py", "--waves", "3", "--clients", "40")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "120 requests" in result.stdout


@pytest.mark.parametrize(
    ("behaviour", "bodies", "ends", "is_right"),
    [
        ("whole", ['{"choices": [{"text": " b c"}]}'], False, True),
        ("whole", ['{"choices": [{"text": " b"}]}'], False, False),
        ("scored", ['{"choices": [{"text": "a"}]}'], False, True),
        ("streamed", ['{"choices": [{"text": " b"}]}', '{"choices": [{"text": " c"}]}', "[DONE]"], False, True),
        ("streamed", ['{"choices": [{"text": " b c"}]}'], False, False),
        ("streamed", ['{"choices": [{"text": " b"}]}', '{"error": {"message": "the server ends"}}'], True, True),
        ("streamed", ['{"choices": [{"text": " x"}]}', '{"error": {"message": "the server ends"}}'], True, False),
        ("streamed", ['{"choices": [{"text": " b"}]}', '{"error": {"message": "the server ends"}}'], False, False),
        ("gone amid", ['{"choices": [{"text": " b"}]}'], False, True),
        ("gone amid", ['{"choices": [{"text": " x"}]}'], False, False),
    ],
)
def test_a_text_that_differs_is_noticed(behaviour: str, bodies: list[str], ends: bool, is_right: bool) -> None:
    assert (problem_of(CASE, behaviour, bodies, ends) is None) == is_right


def test_what_is_lost_or_grows_is_noticed() -> None:
    tally = Tally()
    tally.note("whole", None)
    judge(tally, 1, STEADY)
    with pytest.raises(HeliumError, match="2 requests were made, and 1 ended"):
        judge(tally, 2, STEADY)
    with pytest.raises(HeliumError, match="threads grew from 9 to 20"):
        judge(tally, 1, [*STEADY, {"resident": 10**8, "threads": 20}])
    tally.note("slow", "another text")
    with pytest.raises(HeliumError, match="slow: another text"):
        judge(tally, 2, STEADY)
