"""Stop strings, found in the text and not in the tokens: a stop string may begin and end inside of tokens."""

from collections.abc import Collection, Sequence

from helium_mlx.errors import OptionError
from helium_mlx.json_files import shown


class StopStrings:
    """Passes streamed text on, holding back an end that could be the start of a stop string."""

    def __init__(self, stop: str | Sequence[str] | None) -> None:
        strings = () if stop is None else (stop,) if isinstance(stop, str) else stop
        if not isinstance(strings, Collection) or not all(isinstance(string, str) and string for string in strings):
            raise OptionError(
                f"stop is {shown(stop)}; it must be text of at least one character, several of them, or None"
            )
        self.stop = tuple(strings)
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
