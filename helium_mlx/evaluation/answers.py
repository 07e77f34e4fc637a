"""The answers of a model, kept line by line, so that an evaluation goes on where it was ended.

The first line says what the file is: another is refused, and left as it is. Each further line is a key, the SHA-256 of
what was asked of whom, and the answer. Lines are only ever added, each few with one write, so that whatever ends the
process leaves whole lines and at most one torn, which is cut off at the next start.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from helium_mlx.errors import HeliumError, shown

HEADER = b'{"format": "helium_mlx answers", "version": 1}\n'

Value = str | tuple[float, bool] | float


class Answers:
    """Answers by their key; a context, at whose end the file is closed. Without a path they are in memory only."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._known: dict[str, Value] = {}
        self._file: int | None = None

    def __enter__(self) -> "Answers":
        if self.path is not None:
            try:
                require_answers(self.path)
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
                self._read()
            except OSError as error:
                raise HeliumError(f"{self.path}: answers cannot be kept there ({error.strerror})") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Value | None:
        """Return an answer, None for one that is not known."""
        return self._known.get(key)

    def add(self, answers: Mapping[str, Value]) -> None:
        """Keep some more."""
        self._known.update(answers)
        if self._file is not None and answers:
            lines = "".join(json.dumps([key, value]) + "\n" for key, value in answers.items())
            _write(self._file, lines.encode())

    def _read(self) -> None:
        assert self.path is not None and self._file is not None
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._file, whole)
        if whole == 0:
            _write(self._file, HEADER)
        for line in data[len(HEADER) : whole].splitlines():
            found = _parsed(line)
            if found is not None:
                self._known[found[0]] = found[1]


def require_answers(path: Path) -> None:
    """Raise HeliumError if something is there that is no file of answers, or may not be written to."""
    if not path.exists():
        return
    if not path.is_file() or not os.access(path, os.R_OK | os.W_OK):
        raise HeliumError(f"{path}: answers cannot be kept there (no file that may be written to); move it away")
    with path.open("rb") as file:
        start = file.read(len(HEADER))
    # It may be torn itself.
    if not HEADER.startswith(start):
        raise HeliumError(
            f"{path} begins with {shown(start.decode(errors='replace'))}, no answers that this program kept; name "
            "another output, or move it away"
        )


def key_of(*parts: object) -> str:
    """Return the key of what these parts say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _parsed(line: bytes) -> tuple[str, Value] | None:
    """Return a line's key and answer; None for one that is neither, which is then asked again."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, list) or len(found) != 2 or not isinstance(found[0], str):
        return None
    key, value = found
    if isinstance(value, (str, float)):
        return key, value
    if isinstance(value, list) and list(map(type, value)) == [float, bool]:
        return key, (value[0], value[1])
    return None


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
