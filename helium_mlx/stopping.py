"""Stop strings, found in the text and not in the tokens: a stop string may begin and end inside of tokens."""

from collections.abc import Sequence

from helium_mlx.errors import GenerationError


class StopStrings:
    """Passes streamed text on, holding back an end that could be the start of a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(isinstance(string, str) and string for string in stop):
            raise GenerationError(f"stop is {list(stop)!r}; stop strings must be text of at least one character")
        self.stop = stop
        self.held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """Return the text that can be shown now, and whether a stop string has been completed.

        The stop string itself, and what follows it, are never shown.
        """
        self.held += text
        found = [position for string in self.stop if (position := self.held.find(string)) >= 0]
        if found:
            shown, self.held = self.held[: min(found)], ""
            return shown, True
        keep = max((_overlap(self.held, string) for string in self.stop), default=0)
        shown, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return shown, False

    def finish(self) -> str:
        """Return what is still held back, once no more text comes."""
        shown, self.held = self.held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that `stop` begins with; shorter than `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
