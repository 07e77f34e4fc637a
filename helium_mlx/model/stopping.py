"""What ends a row of `generate` beside eos and the length: stop strings, time, and functions of the caller's.

All of it is asked on the host, once a step, so that a call with any of it does not compute a token ahead.
"""

import copy
import time
from collections.abc import Callable, Sequence
from typing import cast

import mlx.core as mx

from helium_mlx.errors import GenerationError
from helium_mlx.option_values import require_no_surrogate
from helium_mlx.tokenizer.string_search import require_few, string_table
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Scores = tuple[mx.array, ...] | None
"""Those of all steps so far, where the call returns them."""
Criterion = Callable[[mx.array, Scores], "mx.array | bool"]
"""`(ids, scores) -> which rows end`, (B,), or whether all do."""


class StoppingCriteria:
    """What code for transformers derives its criteria from; any function of ids and scores is as good."""

    def __call__(self, input_ids: mx.array, scores: Scores) -> "mx.array | bool":
        """Return which rows end, (B,), or whether all do."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__ of its own")


class StoppingCriteriaList(list[Criterion]):
    """Several criteria; a row ends where one of them says so."""

    def __call__(self, input_ids: mx.array, scores: Scores = None) -> mx.array:
        """Return which rows end, (B,)."""
        ended = mx.zeros((input_ids.shape[0],), mx.bool_)
        for criterion in self:
            # A copy, since writing to an mx.array changes the caller's.
            ended = ended | _answer(criterion(copy.copy(input_ids), scores), input_ids.shape[0])
        return ended


class StopSequences:
    """Finds stop strings that end inside a row's last token; they may begin in the prompt, as in transformers."""

    def __init__(self, stop_strings: tuple[str, ...], tokenizer: HeliumTokenizer | None) -> None:
        if stop_strings and not isinstance(tokenizer, HeliumTokenizer):
            came = "none came" if tokenizer is None else f"{type(tokenizer).__name__} came"
            raise GenerationError(f"stop_strings need the tokenizer, a HeliumTokenizer; {came}: tokenizer=tokenizer")
        require_few("stop_strings", stop_strings)
        for string in stop_strings:
            require_no_surrogate("stop_strings", string)
        self.tokenizer = tokenizer
        stops = tuple(string.encode() for string in stop_strings)
        self.longest = max(map(len, stops), default=0)
        self._table = string_table(stops)
        # One a row, of all tokens but those of the next step; a row's prompt counts.
        self._states: list[int] | None = None

    def ended(self, ids: mx.array) -> list[bool]:
        """Return for each row whether a stop string has ended in its last token, the first since the last call."""
        if self._states is None:
            # A token has a byte at least.
            before = cast(list[list[int]], ids[:, -self.longest - 1 : -1].tolist())
            self._states = [self._after(0, tokens)[0] for tokens in before]
        last = cast(list[int], ids[:, -1].tolist())
        found = [self._after(state, [token]) for state, token in zip(self._states, last, strict=True)]
        self._states = [state for state, _ in found]
        return [is_stopped for _, is_stopped in found]

    def forget(self) -> None:
        """Learn that the rows of the next call are others than those of the last."""
        self._states = None

    def _after(self, state: int, tokens: list[int]) -> tuple[int, bool]:
        """Return the state after some tokens, and whether a stop string has ended in them."""
        assert self.tokenizer is not None
        is_stopped = False
        for token in tokens:
            for byte in self.tokenizer.token_bytes(token):
                state = self._table.step(state, byte)
                is_stopped |= self._table.longest[state] is not None
        return state, is_stopped


class Stopping:
    """Everything that ends rows beside eos and the length; time counts from here."""

    def __init__(
        self, stops: StopSequences, max_time: float | None = None, criteria: Sequence[Criterion] | None = None
    ) -> None:
        self.stops = stops
        self.ends_at = None if max_time is None else time.monotonic() + max_time
        self.criteria = StoppingCriteriaList(criteria or [])

    @property
    def asks(self) -> bool:
        """Whether there is anything to ask each step."""
        return bool(self.stops.longest or self.ends_at is not None or self.criteria)

    def ended(self, ids: mx.array, scores: Scores = None) -> mx.array:
        """Return which rows of `ids` (B, T) end with their last id, (B,)."""
        B = ids.shape[0]
        ended = mx.full((B,), self.ends_at is not None and time.monotonic() > self.ends_at)
        if self.stops.longest:
            ended = ended | mx.array(self.stops.ended(ids))
        return ended | self.criteria(ids, scores)


def _answer(given: object, rows: int) -> mx.array:
    answer = given if isinstance(given, mx.array) else mx.array(given) if isinstance(given, bool) else None
    if answer is None or answer.dtype != mx.bool_ or answer.shape not in ((), (1,), (rows,)):
        came = f"{answer.dtype} {answer.shape}" if answer is not None else type(given).__name__
        raise GenerationError(f"a stopping criterion returned {came}; it must return a boolean, or booleans ({rows},)")
    return answer
