"""What goes wrong on the way to the Hub: a fault meets the next requests that fit it."""

import re
from dataclasses import dataclass, field


@dataclass
class Fault:
    """Meets the next `times` requests of `method` whose path `path`, a regular expression, is found in.

    `status` is answered, with `message` as the Hub sends it, after the body was read; the request does nothing.
    `cut_after` closes the connection after so many bytes of the body. `lose_answer` does what was asked and closes the
    connection then. `delay` waits so many seconds before anything else.
    """

    method: str
    path: str
    status: int | None = None
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    lose_answer: bool = False
    delay: float = 0
    times: int = 1

    def meets(self, method: str, path: str) -> bool:
        """Whether a request is to fail; it then counts."""
        if not self.times or method != self.method or not re.search(self.path, path):
            return False
        self.times -= 1
        return True
