import sys
from types import FrameType
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helium_mlx.generation.ngram_index import REACH, SIZES, SUBSTITUTABLE, NgramIndex

if TYPE_CHECKING:
    from _typeshed import TraceFunction

TEXTS = st.lists(st.integers(0, 3), max_size=60)


class CountedToken(int):
    """A token that counts how often it is hashed and compared."""

    operations = 0

    def __hash__(self) -> int:
        CountedToken.operations += 1
        return int(self) * 7919

    def __eq__(self, other: object) -> bool:
        CountedToken.operations += 1
        return int(self) == int(other)  # pyright: ignore[reportArgumentType]


def search(tokens: list[int]) -> tuple[int, list[int]]:
    """Length and continuation of the match at the end, by looking through the whole text for every token."""
    length = following = 0
    for end in range(1, len(tokens) + 1):
        before, expected = length, tokens[following]
        following += bool(length)
        if before and expected == tokens[end - 1]:
            length += 1
            continue
        length = 0
        for size in SIZES:
            ngram = tokens[end - size : end] if size <= end else None
            ends = [place for place in range(size, end) if tokens[place - size : place] == ngram]
            if ends:
                following = ends[-1]
                common = range(size, min(REACH, following) + 1)
                length = max(n for n in common if tokens[following - n : following] == tokens[end - n : end])
                break
        if not length and before >= SUBSTITUTABLE and following < end:
            length = SIZES[-1]
    text = list(tokens)
    for place in range(following, following + 8 if length else following):
        text.append(text[place])
    return length, text[len(tokens) :]


def test_the_latest_of_two_occurrences_is_continued() -> None:
    assert NgramIndex([1, 2, 8, 8, 1, 2, 9, 7, 1, 2]).continuation(3) == [9, 7, 1]


def test_a_longer_occurrence_comes_before_a_later_one() -> None:
    assert NgramIndex([5, 1, 2, 8, 6, 1, 2, 9, 5, 1, 2]).continuation(1) == [8]


def test_text_without_repeats_has_no_continuation() -> None:
    index = NgramIndex(range(100))
    assert (index.match_length, index.continuation(4)) == (0, [])


@pytest.mark.parametrize("length", [0, 1, 2])
def test_texts_shorter_than_an_ngram_have_no_continuation(length: int) -> None:
    assert NgramIndex([1] * length).continuation(4) == []


def test_a_continuation_beyond_the_end_repeats_its_period() -> None:
    assert NgramIndex([1, 2, 3, 1, 2]).continuation(7) == [3, 1, 2, 3, 1, 2, 3]


def test_a_match_is_measured_backwards_as_far_as_the_reach() -> None:
    for length, expected in ((3, 3), (10, 10), (REACH + 9, REACH)):
        # The end of the second copy is found again after it was lost, so that all of it has to be measured.
        index = NgramIndex([*range(length), 900, 901])
        index.extend(range(length - 1))
        index.match_length = 0
        index.extend([length - 1])
        assert index.match_length == expected


def test_a_match_is_followed_and_grows_with_each_token() -> None:
    index, lengths = NgramIndex([*range(50), 99]), []
    for token in range(50):
        index.extend([token])
        lengths.append(index.match_length)
    assert lengths == [0, *range(2, 51)]


def test_a_long_match_is_followed_past_a_token_that_differs() -> None:
    for length in (SUBSTITUTABLE - 1, SUBSTITUTABLE):
        told = [*range(length), 50, 60, 61]
        index = NgramIndex([*told, 99, *range(length), 51])
        assert index.continuation(2) == ([60, 61] if length == SUBSTITUTABLE else [])


@given(TEXTS)
def test_the_tables_find_what_a_search_finds(tokens: list[int]) -> None:
    index = NgramIndex(tokens)
    assert (index.match_length, index.continuation(8)) == search(tokens)


@given(TEXTS, st.integers(0, 60))
def test_tokens_may_come_in_any_portions(tokens: list[int], cut: int) -> None:
    index = NgramIndex(tokens[:cut])
    index.extend(tokens[cut:])
    assert index.continuation(20) == NgramIndex(tokens).continuation(20)


def most_operations(text: list[int], count: int) -> int:
    """The most hashes, comparisons and lines of Python that one of the last `count` tokens of `text` costs."""
    index, costs, lines = NgramIndex(map(CountedToken, text[:-count])), [], 0
    tracer = sys.gettrace()

    def trace(frame: FrameType, event: str, _: object) -> "TraceFunction":
        nonlocal lines
        lines += event == "line" and "ngram_index" in frame.f_code.co_filename
        return trace

    for token in text[-count:]:
        counted = CountedToken(token)
        CountedToken.operations, lines = 0, 0
        sys.settrace(trace)
        try:
            index.extend([counted])
            index.continuation(4)
        finally:
            sys.settrace(tracer)
        costs.append(CountedToken.operations + lines)
    return max(costs)


@pytest.mark.parametrize("period", [1, 37, 10**9], ids=["one token", "a refrain", "no repeats"])
def test_a_token_costs_as_much_behind_a_long_text_as_behind_a_short_one(period: int) -> None:
    short, long = ([i % period for i in range(length)] for length in (200, 20_000))
    assert most_operations(long, 80) <= most_operations(short, 80) < 400


def test_a_token_that_breaks_a_match_costs_as_much_behind_a_long_text() -> None:
    short, long = ([*(i % 37 for i in range(length)), 77, *range(30), 78] for length in (37 * 6, 37 * 600))
    assert most_operations(long, 32) <= most_operations(short, 32) < 400
