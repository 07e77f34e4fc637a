"""How often suggestions are right, `examples/suggestion_threshold.py`: what counts as shown and as right."""

import sys

import pytest
from processes import EXAMPLES, run_example

sys.path.insert(0, str(EXAMPLES))

from suggestion_threshold import Place, cells, place_of

from helium_mlx.engine.suggestions import SuggestedWord


@pytest.mark.parametrize(
    ("rest", "right"),
    [("me there was", 2), ("me there", 2), ("mes there", 0), ("me therein", 1), ("", 0), ("me  there", 1)],
)
def test_words_are_right_up_to_the_first_that_the_text_has_not(rest: str, right: int) -> None:
    words = [SuggestedWord(0, "me", 0.9), SuggestedWord(0, " there", 0.6)]
    assert place_of(words, rest) == Place([0.9, 0.6], right)


def test_words_are_shown_up_to_the_first_below_the_threshold() -> None:
    place = Place([0.9, 0.5, 0.7], right=3)
    assert [place.shown(threshold) for threshold in (0.0, 0.5, 0.6, 0.95)] == [3, 3, 1, 0]


def test_shares_are_of_the_places_of_those_with_a_suggestion_and_of_the_words() -> None:
    found = [Place([0.9, 0.8], right=1), Place([0.9, 0.4, 0.9], right=0), Place([0.3], right=1), Place([], right=0)]
    # Shown are 2 words and 1, of which 1 is right.
    assert cells(found, 0.5) == ["50%", "50%", "33%"]
    assert cells(found, 0.95) == ["0%", "0%", "0%"]


def test_it_prints_a_row_a_threshold_and_higher_ones_show_less() -> None:
    result = run_example("suggestion_threshold.py", "--every", "700")
    assert (result.returncode, result.stderr) == (0, "")
    _, _, *rows = (line.strip("| ").split(" | ") for line in result.stdout.splitlines())
    for column in (1, 4):
        shares = [int(row[column].removesuffix("%")) for row in rows]
        assert shares == sorted(shares, reverse=True)
