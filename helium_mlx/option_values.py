"""The values of options: each is taken, as a plain Python number, or refused in one line that names it.

numpy's and MLX's numbers are as good as Python's; booleans are not numbers, and neither is text. What an option may be
is said where it is used; here is only how that is checked. What is raised is an OptionError, for generation, unless the
caller names another `error`.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from types import FunctionType
from typing import ParamSpec, TypeVar, cast

from helium_mlx.errors import (
    CheckpointError,
    GenerationError,
    KeywordError,
    OptionError,
    lone_surrogate,
    shown,
    unknown_keyword,
)

P = ParamSpec("P")
T = TypeVar("T")
OnProgress = Callable[[int, int], None]

# Makes the error of a message: a class of errors, in most cases.
ErrorOf = Callable[[str], Exception]


def with_known_keywords(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that answers a misspelled keyword with a KeywordError, which names the nearest one.

    `function` has no `**` of its own. What `helium_mlx` makes public goes through here.
    """
    code = cast(FunctionType, function).__code__
    known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]

    @wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> T:
        for keyword in keywords:
            if keyword not in known:
                owner, _, name = cast(FunctionType, function).__qualname__.rpartition(".")
                raise KeywordError(unknown_keyword(owner if name == "__init__" else name, keyword, known))
        return function(*arguments, **keywords)

    return call


def plain(value: object) -> object:
    """Return the Python number in a scalar of numpy or MLX; anything else as it is."""
    item = getattr(value, "item", None)
    return item() if getattr(value, "ndim", None) == 0 and callable(item) else value


def plain_values(value: object) -> object:
    """Return a value as JSON has it, with plain numbers in its lists and objects too, which are copied."""
    if isinstance(value, Mapping):
        return {plain(key): plain_values(inner) for key, inner in cast("Mapping[object, object]", value).items()}
    if isinstance(value, list):
        return [plain_values(inner) for inner in cast("list[object]", value)]
    return plain(value)


def real(value: object) -> int | float | None:
    """Return the Python number in a number, None for anything else."""
    number = plain(value)
    return number if isinstance(number, (int, float)) and not isinstance(number, bool) else None


def whole(value: object) -> int | None:
    """Return the Python number in a whole number, None for anything else."""
    number = plain(value)
    return number if type(number) is int else None


def require_whole(
    name: str, value: object, least: int, most: int | None = None, *, allowed: str = "", error: ErrorOf = OptionError
) -> int:
    """Return a whole number from `least` to `most`. Raises `error`, which says that it must be `allowed`."""
    number = whole(value)
    if number is not None and least <= number and (most is None or number <= most):
        return number
    range_ = f", at least {least}" if most is None else f" from {least} to {most}"
    raise error(f"{name} is {shown(plain(value))}; it must be {allowed or f'a whole number{range_}'}")


def require_number(
    name: str, value: object, least: float, most: float, allowed: str, *, above: float | None = None
) -> float:
    """Return a number from `least` to `most`, and above `above`. Raises OptionError, which says `allowed`."""
    number = real(value)
    if number is not None and least <= number <= most and (above is None or number > above):
        return float(number)
    raise OptionError(f"{name} is {shown(plain(value))}; it must be {allowed}")


def require_switch(name: str, value: object) -> bool:
    """Return a truth value. Raises OptionError for anything else, such as the text "no"."""
    switch = plain(value)
    if isinstance(switch, bool):
        return switch
    raise OptionError(f"{name} is {shown(switch)}; it must be True or False")


def require_call(name: str, value: object, method: str = "__call__") -> None:
    """Raise OptionError unless `value` is None or has the method."""
    if value is not None and not callable(getattr(value, method, None)):
        what = "a function" if method == "__call__" else f"an object with {method}(), such as threading.Event"
        raise OptionError(f"{name} is {shown(value)}; it must be {what}, or None")


def token_ids(name: str, ids: object, vocab_size: int) -> list[int]:
    """Return ids of a sequence or of an array of numpy or MLX, (L,) or (1, L), in its order.

    Raises GenerationError for anything but a flat sequence of ids below `vocab_size`.
    """
    if getattr(ids, "ndim", 1) == 2 and len(cast("Sequence[object]", ids)) == 1:
        # What `return_tensors` gives of one text.
        ids = cast("Sequence[object]", ids)[0]
    to_list = getattr(ids, "tolist", None)
    listed = to_list() if callable(to_list) else ids
    if not isinstance(listed, Iterable) or isinstance(listed, (str, bytes, bytearray, Mapping, set, frozenset)):
        or_text = "a text, or " if name in ("prompt", "text") else ""
        raise GenerationError(f"{name} is {shown(ids)}; give {or_text}a flat sequence of token ids")
    tokens = [plain(token) for token in cast("Iterable[object]", listed)]
    for token in tokens:
        if type(token) is not int or not 0 <= token < vocab_size:
            what = f"an id from 0 to vocab_size - 1 = {vocab_size - 1}"
            raise GenerationError(f"{name} token {shown(token)} is not {what}")
    return cast("list[int]", tokens)


def require_no_surrogate(name: str, text: str) -> None:
    """Raise OptionError for a text with half of a character, which no text of a model has."""
    found = lone_surrogate(text)
    if found is not None:
        raise OptionError(f"{name} has {found}; give text, in UTF-8")


def path_of(path: object) -> Path:
    """Return the path of a file to be. Raises CheckpointError for what names none."""
    name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(name, str) or not name or "\0" in name:
        raise CheckpointError(f"path is {shown(path)}; name a file")
    return Path(name)
