"""What goes wrong on the way to the Hub: a fault meets the next requests that fit it."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Fault:
    """Meets the next `times` requests of `method` whose path `path`, a regular expression, is found in.

    `status` is answered, with `message` as the Hub sends it, after the body was read; the request does nothing.
    `headers` are sent with that, or, where the request is done, over those of its answer; `body` and `edit`, which gets
    and gives back JSON, change what is answered, and `is_cut` closes the connection in the middle of it.
    `cut_after` closes the connection after so many bytes of the body. `lose_answer` does what was asked and closes the
    connection then. `is_silent` waits for the stand-in's `goes_on` before anything else.
    """

    method: str
    path: str
    status: int | None = None
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    lose_answer: bool = False
    body: bytes | None = None
    edit: Callable[[Any], object] | None = None
    is_cut: bool = False
    is_silent: bool = False
    times: int = 1

    def meets(self, method: str, path: str) -> bool:
        """Whether a request is to fail; it then counts."""
        if not self.fits(method, path):
            return False
        self.times -= 1
        return True

    def fits(self, method: str, path: str) -> bool:
        """Whether a request would fail."""
        return self.times > 0 and method == self.method and re.search(self.path, path) is not None

    def changed(self, body: bytes) -> bytes:
        """Return what is answered instead of a body."""
        if self.edit is not None:
            # As Python writes it: with numbers that JSON does not have.
            return json.dumps(self.edit(json.loads(body))).encode()
        return body if self.body is None else self.body
