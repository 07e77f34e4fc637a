from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helium_mlx.errors import GenerationError
from helium_mlx.generation.completion import StopStrings
from helium_mlx.tokenizer import string_search
from helium_mlx.tokenizer.string_search import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS


def run(stop: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    stops = StopStrings(stop)
    shown: list[str] = []
    for piece in pieces:
        text, stopped = stops.add(piece)
        shown.append(text)
        if stopped:
            return shown, True
    return [*shown, stops.finish()], False


def test_a_stop_string_across_pieces_is_never_shown() -> None:
    assert run(["END"], ["abE", "N", "Dcd"]) == (["ab", "", ""], True)


def test_a_false_start_is_shown_as_soon_as_it_is_one() -> None:
    assert run(["END"], ["abE", "N", "x"]) == (["ab", "", "ENx", ""], False)


def test_what_is_held_back_comes_at_the_end() -> None:
    assert run(["END"], ["abEN"]) == (["ab", "EN"], False)


def test_the_first_of_several_wins() -> None:
    assert run(["d", "bc"], ["abcd"]) == (["a"], True)


def test_a_single_text_is_one_stop_string() -> None:
    assert StopStrings("ab").add("xaby") == ("x", True)


@pytest.mark.parametrize("stop", [[""], [3]])
def test_an_empty_stop_string_is_refused(stop: list[str]) -> None:
    with pytest.raises(GenerationError, match="at least one character"):
        StopStrings(stop)


@given(st.lists(st.text("ab", max_size=3)), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
def test_streamed_text_is_the_text_before_the_first_stop(pieces: list[str], stop: list[str]) -> None:
    shown, stopped = run(stop, pieces)
    whole = "".join(pieces)
    found = [whole.find(string) for string in stop if string in whole]
    if not found:
        assert ("".join(shown), stopped) == (whole, False)
        return
    assert stopped
    # Which of two overlapping stop strings is completed first decides.
    ends = [(whole.find(string) + len(string), whole.find(string)) for string in stop if string in whole]
    lengths, text = [], ""
    for piece in pieces:
        text += piece
        if any(end <= len(text) for end, _ in ends):
            lengths = [start for end, start in ends if end <= len(text)]
            break
    assert "".join(shown) == whole[: min(lengths)]


def test_the_string_that_was_found_is_named() -> None:
    stops = StopStrings(["d", "bc", "abcd"])
    assert stops.found is None
    assert stops.add("xabcd") == ("x", True)
    assert stops.found == "abcd"


def test_text_that_is_not_visible_counts_and_is_not_shown() -> None:
    stops = StopStrings("ab<end>")
    assert [stops.add("xab"), stops.add("<end", visible=False), stops.add("y")] == [
        ("x", False), ("", False), ("aby", False),
    ]  # fmt: skip
    assert [stops.add("ab"), stops.add("<end>", visible=False)] == [("", False), ("", True)]


def test_the_time_does_not_grow_with_the_number_of_stop_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    step = string_search.StringTable.step

    def counting(self: string_search.StringTable, state: int, element: Hashable) -> int:
        nonlocal steps
        steps += 1
        return step(self, state, element)

    many = StopStrings([f"{number:03}END" for number in range(MAX_STOP_STRINGS)])
    monkeypatch.setattr(string_search.StringTable, "step", counting)
    for _ in range(50):
        many.add("0123456789")
    assert steps == 500


@pytest.mark.parametrize("stop", [["x"] * (MAX_STOP_STRINGS + 1), ["x" * (MAX_STOP_CHARACTERS + 1)]])
def test_more_stop_strings_than_are_bearable_are_refused(stop: list[str]) -> None:
    with pytest.raises(GenerationError, match=r"stop has \d+ strings of \d+ characters in all; at most") as caught:
        StopStrings(stop)
    assert len(str(caught.value)) < 200
