"""Finds any of many stop strings in text or bytes as they come, in time that does not grow with their number."""

import functools
from collections.abc import Hashable, Sequence

from helium_mlx.errors import OptionError

# What a request may bring: the tables of so many take a few milliseconds and megabytes to make.
MAX_STOP_STRINGS = 1000
MAX_STOP_CHARACTERS = 20_000


class StringTable:
    """Aho and Corasick's automaton, over the characters of strings or the bytes of byte strings.

    A state is the longest end of the text that a string begins with, `depth` its length, and `longest` the place of the
    longest string that ends there, None if none does.
    """

    def __init__(self, strings: tuple[Sequence[Hashable], ...]) -> None:
        self._following: list[dict[Hashable, int]] = [{}]
        self.depth = [0]
        self.longest: list[int | None] = [None]
        for place, string in enumerate(strings):
            self.longest[self._added(string)] = place
        self._shorter = [0] * len(self.depth)
        states = list(self._following[0].values())
        for state in states:
            for element, following in self._following[state].items():
                shorter = self._shorter[following] = self.step(self._shorter[state], element)
                if self.longest[following] is None:
                    self.longest[following] = self.longest[shorter]
                states.append(following)

    def _added(self, string: Sequence[Hashable]) -> int:
        state = 0
        for element in string:
            if element not in self._following[state]:
                self._following[state][element] = len(self.depth)
                self._following.append({})
                self.depth.append(self.depth[state] + 1)
                self.longest.append(None)
            state = self._following[state][element]
        return state

    def step(self, state: int, element: Hashable) -> int:
        """Return the state after one more character or byte."""
        while state and element not in self._following[state]:
            state = self._shorter[state]
        return self._following[state].get(element, 0)


string_table = functools.lru_cache(maxsize=32)(StringTable)


def require_few(name: str, strings: Sequence[str]) -> None:
    """Raise OptionError for more strings, or longer ones, than are looked for."""
    characters = sum(map(len, strings))
    if len(strings) > MAX_STOP_STRINGS or characters > MAX_STOP_CHARACTERS:
        raise OptionError(
            f"{name} has {len(strings)} strings of {characters} characters in all; at most {MAX_STOP_STRINGS} of "
            f"{MAX_STOP_CHARACTERS} are looked for: give fewer"
        )
