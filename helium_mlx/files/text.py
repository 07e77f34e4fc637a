"""A text that a user names: read under a cap, as UTF-8, without a byte order mark.

What is wrong with it is said without its name, which each reader puts in front, in an error of its own kind.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from helium_mlx.errors import HeliumError
from helium_mlx.files.untrusted import FileProblem, MalformedFile, UnreadableFile

_MAX_INPUT_BYTES = 10_000_000


@dataclass(frozen=True)
class TextFile:
    """The text, and the SHA-256 of the bytes that it was read from."""

    text: str
    sha256: str


def read_text(name: str | Path, max_bytes: int) -> TextFile:
    """Return the text of a file, of standard input where the name is "-".

    Raises UnreadableFile for one that cannot be read or is larger than `max_bytes`, MalformedFile for one that is not
    UTF-8.
    """
    # It brings OpenSSL along, 4 MB, and most completions start without a file.
    import hashlib

    data = _read(name, max_bytes + 1)
    if len(data) > max_bytes:
        raise UnreadableFile(f"has over {max_bytes // 10**6} MB; give a part of it")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise MalformedFile(not_utf8(error)) from None
    return TextFile(text, hashlib.sha256(data).hexdigest())


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return what is said of bytes that are not UTF-8, without a name in front."""
    byte = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
    return f"is not UTF-8 ({byte}); convert it first"


def read_standard_input(flag: str) -> str:
    """Return what a command is given as `flag` through standard input: line ends are "\\n", the last one is left out.

    Raises HeliumError for what `read_text` does not read.
    """
    try:
        text = read_text("-", _MAX_INPUT_BYTES).text
    except FileProblem as problem:
        raise HeliumError(f"{flag} -: standard input {problem}") from None
    # `echo` and editors end with a newline that is not meant.
    return text.replace("\r\n", "\n").removesuffix("\n")


def _read(name: str | Path, size: int) -> bytes:
    if str(name) == "-" and sys.stdin is None:
        raise UnreadableFile("cannot be read (standard input is closed); give it otherwise")
    try:
        if str(name) == "-":
            return sys.stdin.buffer.read(size)
        with open(name, "rb") as file:
            return file.read(size)
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
