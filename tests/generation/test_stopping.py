import pytest
from hypothesis import given
from hypothesis import strategies as st

from helium_mlx.errors import GenerationError
from helium_mlx.generation.completion import StopStrings


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
