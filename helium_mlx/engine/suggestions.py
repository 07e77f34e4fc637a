"""What could be typed next: `HeliumEngine.suggest`, word by word, while there is time.

A suggestion goes on inside the last word (`generation/healing.py`) with the likeliest token at each step. It is given
a whole word at a time, and only while its probability, the geometric mean of those of its tokens, is not below a
threshold: none is better than a wrong one. It ends where the line does. Of `n`, each begins with another of the most
probable tokens; all decode together.

What a token is worth here is its probability once it is known what has been typed: of the tokens that may begin the
word, not of all.

Time is looked at by the reader, who waits no longer than there is time for the next token and takes what was computed
by then. Not here: who computes (`scheduler.py`), and texts that are longer than the model's context.
"""

import math
import re
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal
from weakref import WeakValueDictionary

from helium_mlx.engine.stream import EngineStream
from helium_mlx.errors import HeliumError, OptionError, shown
from helium_mlx.generation.completion import GenerationChunk
from helium_mlx.generation.healing import MOST_CUT
from helium_mlx.generation.request import CompletionOptions, CompletionRequest
from helium_mlx.option_values import require_number, require_whole
from helium_mlx.table import short_repr
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

SuggestionEnd = Literal["words", "line", "eos", "length", "threshold", "time", "replaced", "cancelled"]

MOST_WORDS = 1000
MOST_SUGGESTIONS = 32
_LONGEST_MS = 3_600_000
_TOKENS_A_WORD = 8

# A word is whole once something that is no part of it follows.
_WHOLE_WORD = re.compile(r"\s*\S+(?=\s)")
_LAST_WORD = re.compile(r"\s*\S+")


@dataclass(frozen=True)
class SuggestedWord:
    """A word more of the suggestion `index`, with what stands before it, and the probability of the whole so far."""

    index: int
    text: str
    probability: float


@dataclass(frozen=True)
class Suggestion:
    """What may follow the text, byte for byte. `probability` is the geometric mean of those of its tokens."""

    text: str
    probability: float
    index: int = 0


@dataclass(frozen=True)
class Suggestions:
    """All suggestions, the most probable first, and why there is no more.

    `ended` is "words", "line", "eos" (the model ended the text), "length" (of a context, or of a word without end),
    "threshold" or "time", of the first of them; "replaced" (by a newer text) or "cancelled" where that came before.
    """

    suggestions: list[Suggestion]
    ended: SuggestionEnd
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class SuggestionOptions:
    """What `HeliumEngine.suggest` was asked for. Raises OptionError for a value out of range."""

    max_words: int
    time_budget_ms: float
    n: int
    threshold: float
    handle: str | None

    def __post_init__(self) -> None:
        budget = require_number(
            "time_budget_ms", self.time_budget_ms, 0, _LONGEST_MS, f"above 0 and at most {_LONGEST_MS}", above=0
        )
        if self.handle is not None and not isinstance(self.handle, str):
            raise OptionError(f"handle is {shown(self.handle)}; it must be text, or None")
        checked = {
            "max_words": require_whole("max_words", self.max_words, 1, MOST_WORDS),
            "time_budget_ms": budget,
            "n": require_whole("n", self.n, 1, MOST_SUGGESTIONS),
            "threshold": require_number("threshold", self.threshold, 0, 1, "from 0 to 1"),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def completion(self, vocab_size: int) -> CompletionOptions:
        """Return the options of the requests."""
        return CompletionOptions(
            max_tokens=self.max_words * _TOKENS_A_WORD + MOST_CUT,
            stop=("\n", "\r"),
            # One more, since an eos is nothing to begin with.
            logprobs=min(self.n + 1, vocab_size),
            heal=True,
        )


class _Candidate:
    """One suggestion as it comes: its text, and where in it each of its tokens begins."""

    def __init__(self, index: int, stream: EngineStream) -> None:
        self.index = index
        self.stream = stream
        self.ended: SuggestionEnd | None = None
        self.probability = 0.0
        self.words = 0
        self.logprobs: list[float] = []
        self._text = ""
        self._starts: list[int] = []
        self._given = 0

    @property
    def text(self) -> str:
        """The words that were given."""
        return self._text[: self._given]

    def add(self, text: str, logprob: float) -> None:
        """Take a token with the text that it made certain."""
        self._starts.append(len(self._text))
        self.logprobs.append(logprob)
        self._text += text

    def word(self, *, is_last: bool, threshold: float) -> SuggestedWord | None:
        """Return the next whole word, if there is one that does not bring the probability below the threshold."""
        found = (_LAST_WORD if is_last else _WHOLE_WORD).match(self._text, self._given)
        if found is None:
            return None
        values = [value for start, value in zip(self._starts, self.logprobs, strict=True) if start < found.end()]
        probability = math.exp(sum(values) / len(values))
        if probability < threshold:
            self.ended = "threshold"
            return None
        self._given, self.probability = found.end(), probability
        self.words += 1
        return SuggestedWord(self.index, found[0], probability)


class SuggestionStream(Iterator[SuggestedWord], AsyncIterator[SuggestedWord]):
    """The suggestions for one text as they appear: iterate over the words, `for` or `async for`, or ask for `result`.

    Words of several suggestions come in turn. It is for one reader. Whoever lets go of it cancels what is under way,
    and so do `cancel` and the end of a `with`. `begin` queues a request; `deadline` is a time of `clock`.
    """

    def __init__(
        self,
        begin: Callable[[CompletionRequest], EngineStream],
        request: CompletionRequest,
        tokenizer: HeliumTokenizer,
        options: SuggestionOptions,
        *,
        clock: Callable[[], float],
        deadline: float,
    ) -> None:
        self._begin = begin
        self._request = request
        self._tokenizer = tokenizer
        self._options = options
        self._clock = clock
        self._deadline = deadline
        # Set by any thread, before it cancels what it sees of the candidates.
        self._cut_short: SuggestionEnd | None = None
        self._cached_tokens = 0
        self._words: deque[SuggestedWord] = deque()
        self._candidates = [_Candidate(0, begin(request))]
        self._reading = deque(self._candidates)

    def __repr__(self) -> str:
        """Say how it stands, at once."""
        return short_repr(self, state=self._ended or "open", suggestions=[each.text for each in self._ranked()])

    def __iter__(self) -> "SuggestionStream":
        return self

    def __next__(self) -> SuggestedWord:
        while not self._words:
            candidate = self._next_to_read()
            if candidate is None:
                raise StopIteration
            try:
                self._take(candidate, candidate.stream.next_within(self._time_for(candidate)))
            except TimeoutError:
                self._note_time(candidate)
            except HeliumError:
                self.cancel()
                raise
        return self._words.popleft()

    def __aiter__(self) -> "SuggestionStream":
        return self

    async def __anext__(self) -> SuggestedWord:
        while not self._words:
            candidate = self._next_to_read()
            if candidate is None:
                raise StopAsyncIteration
            try:
                self._take(candidate, await candidate.stream.next_within_async(self._time_for(candidate)))
            except TimeoutError:
                self._note_time(candidate)
            except HeliumError:
                self.cancel()
                raise
        return self._words.popleft()

    def result(self) -> Suggestions:
        """Wait for the end, of the time at the latest, and return the whole, words that were read before included.

        Raises the error that a request ended with, if one did.
        """
        for _ in self:
            pass
        return self._result()

    def __await__(self) -> Generator[object, None, Suggestions]:
        """`await stream` is `result` for tasks."""
        return self._whole().__await__()

    async def _whole(self) -> Suggestions:
        async for _ in self:
            pass
        return self._result()

    def cancel(self) -> None:
        """Stop within one step; from any thread. What was read stays."""
        self._cut("cancelled")

    def replace(self) -> None:
        """Stop within one step, since there is a newer text; from any thread."""
        self._cut("replaced")

    def __enter__(self) -> "SuggestionStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    async def __aenter__(self) -> "SuggestionStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def _cut(self, ended: SuggestionEnd) -> None:
        if self._ended is None:
            self._cut_short = ended
        for candidate in [*self._candidates]:
            candidate.stream.cancel()

    @property
    def _ended(self) -> SuggestionEnd | None:
        """Why there is nothing more, None where there may be."""
        if self._cut_short or self._reading:
            return self._cut_short
        first = (self._ranked() or self._candidates)[0]
        return first.ended

    def _next_to_read(self) -> _Candidate | None:
        """Return the candidate whose turn it is: they decode together."""
        if self._cut_short or not self._reading:
            return None
        self._reading.rotate(-1)
        return self._reading[-1]

    def _seconds_left(self) -> float:
        return max(self._deadline - self._clock(), 0.0)

    def _time_for(self, candidate: _Candidate) -> float:
        """Return for how many seconds to wait for a candidate. At the end of the time nothing more is computed."""
        left = self._seconds_left()
        if not left:
            candidate.stream.cancel()
        return left

    def _note_time(self, candidate: _Candidate) -> None:
        """End a candidate if there is no time left. What there is of others can still be read."""
        if not self._seconds_left():
            candidate.ended = "time"
            self._drop(candidate)

    def _take(self, candidate: _Candidate, chunk: GenerationChunk | None) -> None:
        """Take a chunk, and note the words that are whole with it."""
        if chunk is not None and chunk.token >= 0 and chunk.logprob is not None:
            if candidate.index == 0 and not candidate.logprobs:
                self._cached_tokens = chunk.cached_tokens
                self._begin_others(chunk)
            candidate.add(chunk.text, chunk.logprob)
        reason = "cancelled" if chunk is None else chunk.finish_reason
        self._give_words(candidate, is_last=reason in ("stop", "eos"))
        if reason == "cancelled" and not self._seconds_left():
            reason = "time"
        if reason is not None and candidate.ended is None:
            candidate.ended = "line" if reason == "stop" else reason
        if candidate.ended is not None:
            self._drop(candidate)

    def _drop(self, candidate: _Candidate) -> None:
        candidate.stream.cancel()
        self._reading.remove(candidate)

    def _give_words(self, candidate: _Candidate, *, is_last: bool) -> None:
        while word := candidate.word(is_last=is_last, threshold=self._options.threshold):
            self._words.append(word)
            if candidate.words == self._options.max_words:
                candidate.ended = "words"
                return

    def _begin_others(self, chunk: GenerationChunk) -> None:
        """Begin the others of `n`, each with another of the tokens that are most probable after the text."""
        never = {chunk.token, *self._tokenizer.special_ids, *self._tokenizer.reserved_ids}
        others = [(token, value) for token, value in chunk.top_logprobs.items() if token not in never]
        for token, logprob in others[: self._options.n - 1]:
            text, ended = self._request.text_of(self._tokenizer).add(token, is_last=False)
            if ended is not None:
                continue
            candidate = _Candidate(len(self._candidates), self._begin(replace(self._request, generated=(token,))))
            candidate.add(text, logprob)
            self._candidates.append(candidate)
            self._reading.append(candidate)
        if self._cut_short:
            self._cut(self._cut_short)

    def _ranked(self) -> list[_Candidate]:
        """Return the candidates that have a word, the most probable first, and of two with one text the first."""
        found: dict[str, _Candidate] = {}
        for candidate in sorted(self._candidates, key=lambda each: -each.probability):
            if candidate.words:
                found.setdefault(candidate.text, candidate)
        return list(found.values())

    def _result(self) -> Suggestions:
        return Suggestions(
            suggestions=[Suggestion(each.text, each.probability, each.index) for each in self._ranked()],
            ended=self._ended or "cancelled",
            prompt_tokens=len(self._request.prompt),
            generated_tokens=sum(len(each.logprobs) for each in self._candidates),
            cached_tokens=self._cached_tokens,
        )


class NewestSuggestions:
    """The newest stream of each handle. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: WeakValueDictionary[str, SuggestionStream] = WeakValueDictionary()

    def begin(self, handle: str | None, make: Callable[[], SuggestionStream]) -> SuggestionStream:
        """Return a new stream; the older one of the same handle is ended first."""
        if handle is None:
            return make()
        with self._lock:
            older = self._streams.get(handle)
            if older is not None:
                older.replace()
            self._streams[handle] = stream = make()
        return stream
