"""From tokens to a completion: text as it becomes certain, stop strings, and why it ended.

Stop strings are found in the text, not in the tokens: one may begin and end inside a token.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import mlx.core as mx

from helium_mlx.errors import OptionError, shown
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

FinishReason = Literal["stop", "length", "eos", "cancelled"]


@dataclass(frozen=True)
class GenerationChunk:
    """One generated token and the text that it made certain (often a whole word, sometimes none).

    `logprob` and `top_logprobs` (token id to natural logarithm, most probable first) are the model's own, before
    temperature and filters, and None and empty unless `logprobs` was asked for. Speeds are tokens a second;
    `peak_memory` is MLX's, in gigabytes (1e9 bytes). `from_draft` says that prompt lookup had guessed the token;
    `drafted_tokens` and `accepted_tokens` count what it has guessed so far, and what of that became text.
    `finish_reason` is None until the last chunk. A run cancelled in its prompt has one chunk, whose token is -1.
    """

    text: str
    token: int
    logprob: float | None
    top_logprobs: dict[int, float]
    from_draft: bool
    finish_reason: FinishReason | None
    prompt_tokens: int
    generated_tokens: int
    prompt_tps: float
    generation_tps: float
    peak_memory: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class DecodedToken:
    """A token as it came off the device, with what `logprobs` asked for."""

    token: int
    logprob: float | None
    top_logprobs: dict[int, float]
    from_draft: bool = False


def ranked(ids: mx.array, logprobs: mx.array) -> list[dict[int, float]]:
    """Return the tokens of each row with their log-probabilities, both (K, top), the most probable first."""
    rows = zip(cast("list[list[int]]", ids.tolist()), cast("list[list[float]]", logprobs.tolist()), strict=True)
    return [dict(sorted(zip(*row, strict=True), key=lambda pair: -pair[1])) for row in rows]


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


class CompletionText:
    """Turns the tokens of a completion into text, and says when it ends and why."""

    def __init__(self, tokenizer: HeliumTokenizer, stops: StopStrings, eos: frozenset[int]) -> None:
        self.detokenizer = tokenizer.detokenizer()
        self.stops = stops
        self.eos = eos

    def add(self, token: int, *, is_last: bool) -> tuple[str, FinishReason | None]:
        """Return the text that can be shown with this token, and the reason if it was the end."""
        reason: FinishReason | None = "length" if is_last else None
        text, stopped = "", False
        if token in self.eos:
            reason = "eos"
        else:
            text, stopped = self.stops.add(self.detokenizer.add_token(token))
        if reason and not stopped:
            rest, stopped = self.finish()
            text += rest
        return text, "stop" if stopped else reason

    def finish(self) -> tuple[str, bool]:
        """Return the text that was held back, once no more tokens come, and whether a stop string ended it."""
        rest, stopped = self.stops.add(self.detokenizer.finish())
        return rest + self.stops.finish(), stopped


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that `stop` begins with; shorter than `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
