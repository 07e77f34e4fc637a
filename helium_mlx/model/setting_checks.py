"""What the settings of `generate` may be: a predicate each, and the words for it in the error."""

import math
from collections.abc import Callable
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
