"""From tokens to a completion: text as it becomes certain, stop strings, and why it ended.

Stop strings are found in the text, not in the tokens: one may begin and end inside a token. Special tokens are not
shown, but a stop string may name them, as in transformers.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import mlx.core as mx

from helium_mlx.errors import OptionError, shown
from helium_mlx.model.sound_logits import unsound
from helium_mlx.option_values import require_no_surrogate
from helium_mlx.tokenizer.string_search import require_few, string_table
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

FinishReason = Literal["stop", "length", "eos", "cancelled"]


@dataclass(frozen=True)
class GenerationChunk:
    """One generated token and the text that it made certain (often a whole word, sometimes none).

    `logprob` and `top_logprobs` (token id to natural logarithm, most probable first) are the model's own, before
    temperature and filters (of a token that `heal` holds to bytes: among those that may come), and None and empty
    unless `logprobs` was asked for. Speeds are tokens a second; `peak_memory` is MLX's, in gigabytes (1e9 bytes).
    `from_draft` says that prompt lookup had guessed the token; `drafted_tokens` and `accepted_tokens` count what it has
    guessed so far, and what of that became text. `finish_reason` is None until the last chunk, and `stop_string` unless
    one ended the text. `leading_space` says of the whole completion that it begins a word: its text leaves out the
    space that parts it from the prompt. `cached_tokens` of the prompt were not run, since an engine had kept them of
    another request. A run cancelled in its prompt has one chunk, whose token is -1.
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
    stop_string: str | None = None
    leading_space: bool = False
    cached_tokens: int = 0


@dataclass(frozen=True)
class DecodedToken:
    """A token as it came off the device, with what `logprobs` asked for.

    `is_sound` says whether the logits that it was chosen by were numbers (`model/sound_logits.py`).
    """

    token: int
    logprob: float | None
    top_logprobs: dict[int, float]
    from_draft: bool = False
    is_sound: bool = True

    def require_sound(self) -> None:
        """Raise GenerationError for a token that was chosen by logits that are not numbers."""
        if not self.is_sound:
            raise unsound()


def ranked(ids: mx.array, logprobs: mx.array) -> list[dict[int, float]]:
    """Return the tokens of each row with their log-probabilities, both (K, top), the most probable first.

    Those that cannot come are left out.
    """
    rows = zip(cast("list[list[int]]", ids.tolist()), cast("list[list[float]]", logprobs.tolist()), strict=True)
    possible = ([pair for pair in zip(*row, strict=True) if pair[1] != -math.inf] for row in rows)
    return [dict(sorted(pairs, key=lambda pair: -pair[1])) for pairs in possible]


class StopStrings:
    """Passes streamed text on, holding back an end that could be the start of a stop string.

    `found` is the stop string that has been completed, if one has.
    """

    def __init__(self, stop: str | Sequence[str] | None) -> None:
        strings = () if stop is None else (stop,) if isinstance(stop, str) else stop
        if not isinstance(strings, Collection) or not all(isinstance(string, str) and string for string in strings):
            raise OptionError(
                f"stop is {shown(stop)}; it must be text of at least one character, several of them, or None"
            )
        for string in strings:
            require_no_surrogate("stop", string)
        self.stop = tuple(strings)
        require_few("stop", self.stop)
        self.found: str | None = None
        self._table = string_table(self.stop)
        self._state = 0
        # An entry for each character since the state's beginning, empty where the character is not to be shown.
        self._held: list[str] = []

    def add(self, text: str, *, visible: bool = True) -> tuple[str, bool]:
        """Return the text that can be shown now, and whether a stop string has been completed.

        The stop string itself, and what follows it, are never shown. Text that is not `visible` counts only as part of
        a stop string.
        """
        if not self.stop:
            return (text if visible else ""), False
        start = len(self._held) + len(text)
        for end, character in enumerate(text, start=len(self._held) + 1):
            self._state = self._table.step(self._state, character)
            place = self._table.longest[self._state]
            if place is not None and end - len(self.stop[place]) < start:
                start, self.found = end - len(self.stop[place]), self.stop[place]
        self._held += text if visible else [""] * len(text)
        if self.found is None:
            start = len(self._held) - self._table.depth[self._state]
        shown = "".join(self._held[:start])
        self._held = self._held[start:] if self.found is None else []
        return shown, self.found is not None

    def finish(self) -> str:
        """Return what is still held back, once no more text comes."""
        shown = "".join(self._held)
        self._held, self._state = [], 0
        return shown


class CompletionText:
    """Turns the tokens of a completion into text, and says when it ends and why."""

    def __init__(self, tokenizer: HeliumTokenizer, stops: StopStrings, eos: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.detokenizer = tokenizer.detokenizer()
        self.stops = stops
        self.eos = eos
        self._first: int | None = None

    @property
    def leading_space(self) -> bool:
        """Whether a space that the text leaves out stands between the prompt and it; False before the first token."""
        return self._first is not None and self.tokenizer.begins_word(self._first)

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self.stops.found

    def add(self, token: int, *, is_last: bool) -> tuple[str, FinishReason | None]:
        """Return the text that can be shown with this token, and the reason if it was the end."""
        self._first = token if self._first is None else self._first
        reason: FinishReason | None = "length" if is_last else None
        text, stopped = "", False
        if token in self.eos:
            reason = "eos"
        else:
            text, stopped = self.stops.add(self.detokenizer.add_token(token))
            if not stopped and token in self.tokenizer.special_ids:
                name = self.tokenizer.convert_ids_to_tokens(token)
                more, stopped = self.stops.add(name, visible=False)
                text += more
        if reason and not stopped:
            rest, stopped = self.finish()
            text += rest
        return text, "stop" if stopped else reason

    def finish(self) -> tuple[str, bool]:
        """Return the text that was held back, once no more tokens come, and whether a stop string ended it."""
        rest, stopped = self.stops.add(self.detokenizer.finish())
        return rest + self.stops.finish(), stopped
