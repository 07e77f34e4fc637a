"""The files of a stranger's checkpoint: opened only where that is safe, and their JSON read under caps.

A file is opened if it is a regular one, and no link that leaves the checkpoint; JSON is parsed only once its size and
depth are known. Refused beyond what the format refuses: names that stand twice in an object, NaN and infinities, and
numbers of more than `MAX_DIGITS` characters. What is wrong is said without the file's name, which each reader puts in
front, in an error of its own kind.
"""

import json
import math
import os
import re
import stat
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, cast

from helium_mlx.errors import one_line, shown
from helium_mlx.files.hub_cache import is_cached, snapshot_of

# A quantized Helium of 2 billion parameters has a header of 80 kB, and a config.json of 2 kB.
MAX_JSON_BYTES = 4_000_000

# config.json needs 4 levels, an index 2, a safetensors header 3.
MAX_DEPTH = 32
MAX_DIGITS = 400
_PACKAGE = Path(__file__).parents[1].resolve()
_STRING = re.compile(rb'"[^"]*"?')
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))


class FileProblem(Exception):
    """What is wrong with a file and what to do, without the file's name. Readers turn it into a HeliumError."""


class UnreadableFile(FileProblem):
    """There is no such file, or it is not to be opened."""


class MalformedFile(FileProblem):
    """The file holds something else than expected."""


def open_file(path: Path) -> BinaryIO:
    """Open a file of a checkpoint. Raises UnreadableFile unless it is a regular file, and within the checkpoint.

    A file may link to its own directory, from the Hub's cache (`models--x--y/snapshots/<commit>`) to anything of the
    same repository, and from any other directory to what this machine's cache has of a model. The directory itself was
    named by the user, and may be a link to anywhere.
    """
    if path.is_symlink():
        _require_inside(path)
    try:
        # Opening a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UnreadableFile(f"cannot be read ({error.strerror}); copy it there from the checkpoint") from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    kind = "Is a directory" if stat.S_ISDIR(mode) else "Is not a regular file"
    raise UnreadableFile(f"cannot be read ({kind}); copy the file there from the checkpoint")


def require_file(path: Path, max_bytes: int) -> None:
    """Raise UnreadableFile unless `open_file` opens it and it is no larger than `max_bytes`."""
    with open_file(path) as file:
        _size(file, max_bytes)


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Return the contents of a file. Raises UnreadableFile as `open_file` does, and for one larger than `max_bytes`."""
    with open_file(path) as file:
        size = _size(file, max_bytes)
        try:
            return file.read(size)
        except OSError as error:
            raise UnreadableFile(f"cannot be read ({error.strerror}); copy it there from the checkpoint") from None


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, object]:
    """Return the JSON object in a file. Raises UnreadableFile as `read_bytes` does, else MalformedFile."""
    return parse_json_object(read_bytes(path, max_bytes))


def parse_json_object(text: bytes) -> dict[str, object]:
    """Return the object that UTF-8 JSON holds. Raises MalformedFile for anything else, or deeper than `MAX_DEPTH`."""
    if bracket_depth(text) > MAX_DEPTH:
        raise MalformedFile(f"is not JSON as expected: nested more than {MAX_DEPTH} deep; fetch it again")
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    except UnicodeDecodeError as error:
        raise MalformedFile(f"is not JSON: byte {error.start} is not UTF-8; fetch it again") from None
    except ValueError as error:
        raise MalformedFile(f"is not JSON: {error}; fetch it again") from None
    if not isinstance(value, dict):
        raise MalformedFile(f"holds a {type(value).__name__}; expected a JSON object; fetch it again")
    return cast("dict[str, object]", value)


def _require_inside(path: Path) -> None:
    directory = path.parent.resolve()
    snapshot = snapshot_of(directory)
    # The package's own checkpoint is not a stranger's; some installers link every file of a package.
    if _is_below(path, directory) or directory.parent == _PACKAGE:
        return
    if not (is_cached(path) if snapshot is None else _is_below(path, snapshot.repository)):
        raise UnreadableFile(
            f"is a link to {shown(os.readlink(path))}, outside of the checkpoint, and a stranger's could lead to any "
            "file of yours; copy the file there (cp -L), or give the directory that it links into"
        )


def _is_below(path: Path, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(root)


def _size(file: BinaryIO, max_bytes: int) -> int:
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        raise UnreadableFile(f"has {size} bytes; at most {max_bytes} are read, far more than Helium's; fetch it again")
    return size


def bracket_depth(text: bytes) -> int:
    """Return how deep brackets nest outside of strings in double quotes, without recursion."""
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = _STRING.sub(b"", unescaped).translate(None, _NOT_BRACKETS)
    return max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0)


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the name {shown(name)} stands twice in one object")
    return values


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON's")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{one_line(text, 30)} is too large a number")
    return value


def _whole(text: str) -> int:
    # Reading digits takes time that grows with the square of their number.
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)
