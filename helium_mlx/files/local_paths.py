"""No path of this machine in what is written for others: in place of one stands its last part.

The home and the working directory are found anywhere in a text. Other paths are known as such where a whole value is
one, under a name that says so ("name_or_path", "source", "calibration_text").
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import cast

from helium_mlx.errors import CheckpointError
from helium_mlx.files.atomic import write_json

_MAY_BE_PATH = re.compile(r"path|file|dir|source|text|name|cache", re.IGNORECASE)
_PATH = re.compile(r"(?:file:(?://)?|~[\w.-]*|\.\.?)?(?:/[^/\n]+)+/?")
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/][^\n]*|\\\\[^\n]+")

# How a path may begin that leads up to the root first.
_UP = r"(?:\.{1,2}(?:/\.{1,2})*)?"

# What ends a path within a sentence.
_REST = r"""(?:/[^\s'"`,;:()<>]*|(?![\w.-]))"""


def without_local_paths(value: object, *directories: Path) -> object:
    """Return text, or a JSON value, without paths of this machine: its home, working and the given directories."""
    known = (Path.home(), Path.cwd(), *(path.absolute() for path in directories))
    names = {str(form) for path in known for form in (path, Path(os.path.realpath(path)))} - {"/"}
    longest_first = sorted(names, key=len, reverse=True)
    roots = re.compile(rf"(?<![\w.-])({_UP}(?:{'|'.join(map(re.escape, longest_first))})){_REST}")
    return _cleaned(value, roots, may_be_path=False)


def published(values: Mapping[str, object], *directories: Path) -> dict[str, object]:
    """Return the values of a JSON file as they are written for others; see `without_local_paths`."""
    return cast("dict[str, object]", without_local_paths(values, *directories))


def write_published(path: Path, values: Mapping[str, object], *, in_new_folder: bool = False) -> None:
    """Write a JSON file for others, with `in_new_folder` into a folder that is made if need be.

    Raises CheckpointError if it cannot be written.
    """
    try:
        if in_new_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, published(values, path.parent))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from None


def published_text(data: bytes, *directories: Path) -> bytes:
    """Return a text file as it is written for others, byte for byte but for paths; see `without_local_paths`."""
    text = data.decode("utf-8", errors="surrogateescape")
    return str(without_local_paths(text, *directories)).encode("utf-8", errors="surrogateescape")


def _cleaned(value: object, roots: re.Pattern[str], *, may_be_path: bool) -> object:
    if isinstance(value, str):
        if may_be_path and _PATH.fullmatch(value):
            return PurePosixPath(value).name
        if may_be_path and _WINDOWS_PATH.fullmatch(value):
            return PureWindowsPath(value).name
        return roots.sub(lambda found: "." if found[0].rstrip("/") == found[1] else PurePosixPath(found[0]).name, value)
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {
            _cleaned(key, roots, may_be_path=False): _cleaned(
                inner, roots, may_be_path=_MAY_BE_PATH.search(str(key)) is not None
            )
            for key, inner in items
        }
    if isinstance(value, (list, tuple)):
        return [_cleaned(inner, roots, may_be_path=may_be_path) for inner in cast("list[object]", value)]
    return value
