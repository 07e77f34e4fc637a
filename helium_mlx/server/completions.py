"""`/v1/completions`: from a checked request to the engine's streams, and back to OpenAI's objects or events.

Every prompt's every completion is a request of its own to the engine, which runs them together. A completion is
cancelled, within a step, when its client goes, its time is over, or the server ends.
"""

import asyncio
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import cast

from helium_mlx.engine.engine import HeliumEngine
from helium_mlx.engine.stream import EngineStream
from helium_mlx.errors import HeliumError
from helium_mlx.generation.completion import FinishReason, GenerationChunk
from helium_mlx.generation.sampling import bias_by_name
from helium_mlx.generation.scoring import Score
from helium_mlx.json_writer import to_json
from helium_mlx.server.errors import ApiError, as_api_error, bad
from helium_mlx.server.http import Events
from helium_mlx.server.logprobs import TokenList, mean_logprob
from helium_mlx.server.metrics import Metrics
from helium_mlx.server.parameters import COMPLETION, MAX_CHOICES, NOT_DONE_IN_COMPLETIONS
from helium_mlx.server.schema import read

Prompt = str | list[int]
DONE = "[DONE]"

# Characters of a text that nobody else is to wait for.
_LONG = 1000

# What the engine takes by the same name.
_ENGINE_OPTIONS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "ignore_eos", "heal", "prompt_lookup", "kv_bits",
)  # fmt: skip

# An end by the clock is, for a client, one by length.
_REASONS: Mapping[FinishReason, str] = {"eos": "stop", "stop": "stop", "length": "length", "cancelled": "length"}


@dataclass(frozen=True)
class CompletionCall:
    """A request to `/v1/completions`, checked. `options` are the engine's, but for the seed."""

    prompts: Sequence[Prompt]
    n: int
    best_of: int
    max_tokens: int
    logprobs: int | None
    echo: bool
    streams: bool
    wants_usage: bool
    seconds: float | None
    seed: int | None
    options: Mapping[str, object]

    @classmethod
    def of_body(cls, body: bytes, *, max_tokens_limit: int) -> "CompletionCall":
        """Return the request that a body holds. Raises ApiError, which names the parameter that is wrong."""
        given = read(body, COMPLETION, NOT_DONE_IN_COMPLETIONS)
        prompts, n = _prompts(given["prompt"]), cast(int, given["n"])
        best_of = n if given["best_of"] is None else cast(int, given["best_of"])
        max_tokens, echo = cast(int, given["max_tokens"]), cast(bool, given["echo"])
        streams = cast(bool, given["stream"])
        if best_of < n:
            raise bad("best_of", f"best_of is {best_of}; it must be at least n, which is {n}")
        if best_of > n and streams:
            raise bad("best_of", "best_of is above n, and a stream cannot choose; leave out one of best_of and stream")
        if best_of * len(prompts) > MAX_CHOICES:
            raise bad("n", f"n asks for {best_of * len(prompts)} completions; {MAX_CHOICES} are the most of a request")
        if max_tokens > max_tokens_limit:
            raise bad("max_tokens", f"max_tokens is {max_tokens}; this server allows at most {max_tokens_limit}")
        if max_tokens == 0 and not echo:
            raise bad("max_tokens", "max_tokens is 0; give 1 or more, or echo to score the prompt alone")
        if given["stream_options"] is not None and not streams:
            raise bad("stream_options", "stream_options came without stream; leave it out, or stream")
        bias = cast("dict[str, float]", given["logit_bias"] or {})
        budget = cast("float | None", given["time_budget_ms"])
        options = {name: given[name] for name in _ENGINE_OPTIONS if given[name] is not None}
        return cls(
            prompts=prompts,
            n=n,
            best_of=best_of,
            max_tokens=max_tokens,
            logprobs=cast("int | None", given["logprobs"]),
            echo=echo,
            streams=streams,
            wants_usage=bool(cast("dict[str, object]", given["stream_options"] or {}).get("include_usage")),
            seconds=None if budget is None else budget / 1000,
            seed=cast("int | None", given["seed"]),
            options={**options, "stop": given["stop"] or (), "logit_bias": bias_by_name(bias)},
        )


def _prompts(given: object) -> Sequence[Prompt]:
    if isinstance(given, str):
        return [given]
    several = cast("list[str] | list[int] | list[list[int]]", given)
    return [cast("list[int]", several)] if isinstance(several[0], int) else cast("Sequence[Prompt]", several)


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt as it is given to the engine, its text, and what its tokens scored, if that was asked for."""

    tokens: Sequence[int]
    text: str
    score: Score | None
    hides_bos: bool


class Choice:
    """One completion of a prompt on its way: its text, its tokens, and why it ended."""

    def __init__(self, call: CompletionCall, index: int, place: int) -> None:
        self.call = call
        self.prompt = ReadPrompt([], "", None, False)
        self.index = index
        # Of those of the same prompt; each draws differently.
        self.place = place
        self.text = ""
        self.finish_reason: str | None = None
        self.tokens: TokenList | None = None
        self.logprobs: list[float | None] = []
        self.last: GenerationChunk | None = None

    def begin(self, engine: HeliumEngine, prompt: ReadPrompt) -> str:
        """Return the text that comes first: the prompt, where it is echoed."""
        self.prompt = prompt
        if self.call.logprobs is not None:
            self.tokens = TokenList(engine.tokenizer, self.call.logprobs)
            if prompt.score is not None:
                self.tokens.add_prompt(prompt.score, hides_bos=prompt.hides_bos)
            # Offsets count from the prompt's beginning, whether it is shown or not.
            self.tokens.offset = len(prompt.text)
        self.text = prompt.text if self.call.echo else ""
        return self.text

    def open(self, engine: HeliumEngine) -> EngineStream:
        """Queue it, from any thread. Raises what `HeliumEngine.stream` raises."""
        call = self.call
        wanted = call.logprobs if call.best_of == call.n else max(call.logprobs or 0, 1)
        return engine.stream(
            self.prompt.tokens,
            max_tokens=call.max_tokens,
            seed=None if call.seed is None else (call.seed + self.place) % 2**64,
            logprobs=0 if wanted is None else max(wanted, 1),
            **call.options,  # pyright: ignore[reportArgumentType]
        )

    def add(self, chunk: GenerationChunk) -> str:
        """Take a chunk in, and return the text that it brings."""
        is_first, self.last = self.last is None, chunk
        text = chunk.text
        if chunk.leading_space and is_first:
            text = " " + text
        self.text += text
        # The end of the text is a token too, without a text.
        if chunk.token >= 0:
            self.logprobs.append(chunk.logprob)
            if self.tokens is not None:
                # Healed, a token may begin in the prompt.
                own = text if self.call.options.get("heal") else None
                self.tokens.add(chunk.token, chunk.logprob, chunk.top_logprobs, text=own)
        if chunk.finish_reason is not None:
            self.finish_reason = _REASONS[chunk.finish_reason]
        return text

    def object(self, text: str, *, is_last: bool = True) -> dict[str, object]:
        """Return it as one of the `choices`, with some text and the tokens since the last time."""
        return {
            "text": text,
            "index": self.index,
            "logprobs": None if self.tokens is None else self.tokens.taken(),
            "finish_reason": self.finish_reason if is_last else None,
        }


class Completions:
    """Answers requests to `/v1/completions`. `ending` is set when the server ends, and with it what still runs."""

    def __init__(
        self, engine: HeliumEngine, model: str, metrics: Metrics, *, timeout: float, max_tokens_limit: int
    ) -> None:
        self.engine = engine
        self.model = model
        self.metrics = metrics
        self.timeout = timeout
        self.max_tokens_limit = max_tokens_limit
        self.ending = asyncio.Event()

    async def whole(self, call: CompletionCall) -> str:
        """Return the completion object of a request that does not stream."""
        choices = _choices(call, call.best_of)
        await self._limited(self._run_all(call, choices, _nowhere))
        usage = self._usage(choices)
        return await _written(lambda: self._answer(call, choices, usage), "".join(choice.text for choice in choices))

    def _answer(self, call: CompletionCall, choices: Sequence[Choice], usage: Mapping[str, object]) -> str:
        if call.best_of > call.n:
            kept = []
            for first in range(0, len(choices), call.best_of):
                of_prompt = choices[first : first + call.best_of]
                kept += sorted(of_prompt, key=lambda choice: -mean_logprob(choice.logprobs))[: call.n]
        else:
            kept = choices
        for index, choice in enumerate(kept):
            choice.index = index
        answer = self._object(_new_id(), [choice.object(choice.text) for choice in kept])
        return to_json({**answer, "usage": usage})

    async def events(self, call: CompletionCall) -> Events:
        """Yield the events of a request that streams, text as it comes.

        Raises ApiError before the first event; a later error is an event.
        """
        # One, so that a client that does not read holds up its own completion.
        events: asyncio.Queue[str | ApiError | None] = asyncio.Queue(maxsize=1)
        running = asyncio.ensure_future(self._put_events(call, events.put))
        is_first = True
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, ApiError) and is_first:
                    raise event
                yield event.text() if isinstance(event, ApiError) else event
                is_first = False
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _put_events(self, call: CompletionCall, put: Callable[[str | ApiError | None], Awaitable[None]]) -> None:
        choices, id_ = _choices(call, call.n), _new_id()
        more = {"usage": None} if call.wants_usage else {}

        def event_of(choice: Choice, text: str, is_last: bool) -> str:
            return to_json({**self._object(id_, [choice.object(text, is_last=is_last)]), **more})

        async def pass_on(choice: Choice, text: str, is_last: bool) -> None:
            if text or is_last:
                await put(await _written(lambda: event_of(choice, text, is_last), text))

        try:
            await self._limited(self._run_all(call, choices, pass_on))
        except Exception as error:
            await put(reported(error))
        else:
            usage = self._usage(choices)
            if call.wants_usage:
                await put(to_json({**self._object(id_, []), "usage": usage}))
        await put(DONE)
        await put(None)

    async def _run_all(self, call: CompletionCall, choices: Sequence[Choice], pass_on: "PassOn") -> None:
        """Run all completions of a request to their ends."""
        each = len(choices) // len(call.prompts)

        async def run(number: int, prompt: Prompt) -> None:
            started = time.monotonic()
            read = await self._read(call, prompt)
            of_prompt = choices[number * each : (number + 1) * each]
            await _all(self._run(choice, read, started, streams, pass_on) for choice in of_prompt)

        async with AsyncExitStack() as streams:
            await _all(run(number, prompt) for number, prompt in enumerate(call.prompts))

    async def _run(
        self, choice: Choice, prompt: ReadPrompt, started: float, streams: AsyncExitStack, pass_on: "PassOn"
    ) -> None:
        """Run one completion to its end; `pass_on` is given its text as it comes."""
        shown = choice.begin(self.engine, prompt)
        if choice.call.max_tokens == 0:
            choice.finish_reason = "length"
            await pass_on(choice, shown, True)
            return
        stream = await asyncio.to_thread(choice.open, self.engine)
        streams.callback(stream.close)
        if shown:
            await pass_on(choice, shown, False)
        clock = None
        if choice.call.seconds is not None:
            clock = asyncio.get_running_loop().call_later(
                max(choice.call.seconds - (time.monotonic() - started), 0), stream.cancel
            )
        try:
            async for chunk in stream:
                if choice.last is None:
                    self.metrics.first_token(time.monotonic() - started)
                await pass_on(choice, choice.add(chunk), chunk.finish_reason is not None)
        finally:
            if clock is not None:
                clock.cancel()

    async def _read(self, call: CompletionCall, prompt: Prompt) -> ReadPrompt:
        """Tokenize a prompt, and score it if the request asks for what its tokens are worth."""
        tokens, text = await asyncio.to_thread(self._both, prompt)
        score = None
        if call.echo and call.logprobs is not None:
            if len(tokens) == 1:
                score = Score(list(tokens), [None], [{}], [text], len(text.encode()))
            else:
                score = await self.engine.score_async(tokens, top_logprobs=call.logprobs)
        return ReadPrompt(tokens, text, score, hides_bos=isinstance(prompt, str))

    def _both(self, prompt: Prompt) -> tuple[Sequence[int], str]:
        tokenizer = self.engine.tokenizer
        return (tokenizer.encode(prompt), prompt) if isinstance(prompt, str) else (prompt, tokenizer.decode(prompt))

    async def _limited(self, work: Awaitable[None]) -> None:
        """Do some work, unless the time is over or the server ends before: then cancel it, and raise ApiError."""
        working = asyncio.ensure_future(work)
        ending = asyncio.ensure_future(self.ending.wait())
        try:
            await asyncio.wait([working, ending], timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            elif ending.done():
                raise ApiError(503, "the server ends")
            else:
                raise ApiError(504, f"the completion took longer than {self.timeout:g} s, the server's --timeout")
        finally:
            for task in (working, ending):
                task.cancel()
            await asyncio.gather(working, ending, return_exceptions=True)

    def _object(self, id_: str, choices: list[dict[str, object]]) -> dict[str, object]:
        created = int(time.time())
        return {
            "id": id_,
            "object": "text_completion",
            "created": created,
            "model": self.model,
            "choices": choices,
            "system_fingerprint": None,
        }

    def _usage(self, choices: Sequence[Choice]) -> dict[str, object]:
        """Return the tokens of a request; a prompt counts once, however often it is completed."""
        prompt = cached = 0
        for choice in choices:
            if choice.place == 0:
                prompt += choice.last.prompt_tokens if choice.last else len(choice.prompt.tokens)
                cached += choice.last.cached_tokens if choice.last else 0
        generated = sum(choice.last.generated_tokens for choice in choices if choice.last)
        return self.metrics.used(prompt=prompt, cached=cached, generated=generated)


PassOn = Callable[[Choice, str, bool], Awaitable[None]]


async def _nowhere(choice: Choice, text: str, is_last: bool) -> None:
    pass


def _choices(call: CompletionCall, each: int) -> list[Choice]:
    return [Choice(call, number * each + place, place) for number in range(len(call.prompts)) for place in range(each)]


async def _written(write: Callable[[], str], text: str) -> str:
    """Return the JSON about a text; about a long one, with all alternatives of its tokens, it takes a while."""
    return write() if len(text) < _LONG else await asyncio.to_thread(write)


async def _all(work: Iterable[Awaitable[None]]) -> None:
    """Do several things at once; the first error ends the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _new_id() -> str:
    return f"cmpl-{secrets.token_hex(12)}"


def reported(error: Exception) -> ApiError:
    """Return what a client is told of an error; a bug is shown in the server's log."""
    if not isinstance(error, (ApiError, HeliumError)):
        import traceback

        # Without its message, which may hold somebody's text.
        traceback.print_tb(error.__traceback__)
        print(type(error).__name__, file=sys.stderr, flush=True)
    return as_api_error(error)
