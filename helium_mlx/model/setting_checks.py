"""What the settings of `generate` may be: a predicate each, and the words for it in the error."""

import math
from collections.abc import Callable, Mapping
from typing import cast

Check = tuple[Callable[[object], bool], str]
"""Whether a value may be, and what one must be."""


def number(holds: Callable[[float], bool], expected: str) -> Check:
    """Return the check of a number, such as "from 0 to 1"."""
    return (
        lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and holds(value),
        f"a number {expected}",
    )


def whole_from(least: int) -> Check:
    """Return the check of a whole number."""
    return lambda value: type(value) is int and cast(int, value) >= least, f"a whole number from {least} on"


FLAG: Check = (lambda value: isinstance(value, bool), "True or False")
POSITIVE = number(lambda value: 0 < value < math.inf, "above 0")
SHARE = number(lambda value: 0 <= value <= 1, "from 0 to 1")
SCALE = number(math.isfinite, "that is finite")


def is_id(value: object) -> bool:
    """Return whether a value is a whole number from 0 on; that the vocabulary reaches it is seen later."""
    return type(value) is int and value >= 0


def _is_list(value: object, holds: Callable[[object], bool], least: int = 0) -> bool:
    return isinstance(value, (list, tuple)) and len(value) >= least and all(map(holds, value))


def _is_sequence(value: object) -> bool:
    return _is_list(value, is_id, least=1)


def _is_biased(value: object) -> bool:
    return _is_list(value, lambda _: True, least=2) and _is_sequence(value[0]) and SCALE_OR_BAN[0](value[1])  # pyright: ignore


def _are_biases(value: object) -> bool:
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    return _is_list(pairs, _is_biased, least=1)


def _is_decay(value: object) -> bool:
    return _is_list(value, lambda _: True, least=2) and type(value[0]) is int and SCALE[0](value[1])  # pyright: ignore


SCALE_OR_BAN = number(lambda value: value < math.inf, "below infinity")
ID: Check = (is_id, "the id of a token")
ID_OR_IDS: Check = (lambda value: is_id(value) or _is_sequence(value), "the id of a token, or a list of them")
WHOLE_LIST: Check = (lambda value: _is_list(value, lambda i: type(i) is int), "a list of ids of tokens")
SEQUENCES: Check = (lambda value: _is_list(value, _is_sequence, least=1), "a list of lists of ids, none of them empty")
BIASES: Check = (_are_biases, "a number for each tuple of ids, or a list of such pairs")
DECAY: Check = (_is_decay, "a pair: after how many tokens it begins, and by what factor it grows")
CALLS: Check = (lambda value: _is_list(value, callable), "a list of functions")
CALL: Check = (callable, "a function")
