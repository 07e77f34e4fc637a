"""The server's paths: who may ask is looked at first, then what is asked; whatever happens, there is an answer."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from helium_mlx.engine.engine import HeliumEngine
from helium_mlx.errors import did_you_mean, shown
from helium_mlx.json_writer import to_json
from helium_mlx.server import tokens
from helium_mlx.server.access import Access
from helium_mlx.server.completions import CompletionCall, Completions, reported
from helium_mlx.server.errors import ApiError
from helium_mlx.server.files import page_files
from helium_mlx.server.http import Answer, Events, EventStream, Request
from helium_mlx.server.metrics import CONTENT_TYPE, Metrics
from helium_mlx.server.suggestions import Suggesting, SuggestionCall

# Requests that wait, for each that may run.
_WAITING = 4

_NO_CHAT = (
    "this is a base model, which continues text and has no chat template; send the text to /v1/completions as prompt"
)

A = TypeVar("A", Answer, EventStream, Answer | EventStream)
Respond = Callable[[Request], Awaitable[Answer | EventStream]]


@dataclass(frozen=True)
class Service:
    """What a server offers: `max_concurrent` requests at a time, four times as many waiting, `timeout` seconds each."""

    model: str
    max_concurrent: int = 16
    max_tokens_limit: int = 4096
    timeout: float = 600.0


class App:
    """Answers requests with an engine, which it does not own. Called for each request; never raises."""

    def __init__(self, engine: HeliumEngine, service: Service, access: Access) -> None:
        self.engine = engine
        self.service = service
        self.access = access
        self.metrics = Metrics()
        self.completions = Completions(
            engine,
            service.model,
            self.metrics,
            timeout=service.timeout,
            max_tokens_limit=service.max_tokens_limit,
        )
        self.suggesting = Suggesting(engine, self.metrics)
        self._files = page_files()
        self._routes: Mapping[str, tuple[str, Respond]] = {
            "/v1/completions": ("POST", self._complete),
            "/v1/suggestions": ("POST", self._suggest),
            "/v1/chat/completions": ("POST", self._refuse_chat),
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
            "/tokenize": ("POST", partial(self._in_thread, tokens.tokenize)),
            "/detokenize": ("POST", partial(self._in_thread, tokens.detokenize)),
            "/tokenizer_info": ("GET", self._tokenizer_info),
            "/metrics": ("GET", self._metrics),
            "/openapi.json": ("GET", self._document),
        }

    def end(self) -> None:
        """Have all completions that still run end with an error."""
        self.completions.ending.set()

    def turn_away(self, request: Request) -> Answer | None:
        """Return the answer to a request that may not be made, None for others. Its body is not looked at."""
        try:
            self.access.check(request)
        except ApiError as error:
            return self._counted_answer(request, error.answer())
        return None

    async def __call__(self, request: Request) -> Answer | EventStream:
        """Return the answer to a request."""
        turned_away = self.turn_away(request)
        if turned_away is not None:
            return turned_away
        try:
            answer = await self._route(request)
        except ApiError as error:
            answer = error.answer()
        except Exception as error:
            answer = reported(error).answer()
        return self._counted_answer(request, answer)

    def _counted_answer(self, request: Request, answer: A) -> A:
        # Only paths that there are: others would fill the counters.
        path = request.path if request.path in self._routes or request.path in self._files else "other"
        self.metrics.answered(path, answer.status if isinstance(answer, Answer) else 200)
        return replace(answer, headers=[*answer.headers, *self.access.headers(request)])

    async def _route(self, request: Request) -> Answer | EventStream:
        if request.path in self._files:
            if request.method in ("GET", "HEAD"):
                return self._files[request.path]
            raise _wrong_method(request, "GET, HEAD")
        if request.path not in self._routes:
            near = did_you_mean(request.path, self._routes)
            raise ApiError(404, f"there is nothing at {shown(request.path)}{near}")
        method, respond = self._routes[request.path]
        if request.method == "OPTIONS":
            return Answer(204, headers=[("allow", f"{method}, OPTIONS")])
        if request.method != method and not (method == "GET" and request.method == "HEAD"):
            raise _wrong_method(request, f"{method}, OPTIONS")
        return await respond(request)

    # --- completions and suggestions

    async def _complete(self, request: Request) -> Answer | EventStream:
        call = CompletionCall.of_body(request.body, max_tokens_limit=self.service.max_tokens_limit)
        self._take_place()
        if call.streams:
            return await self._stream(self.completions.events(call))
        return await self._whole(self.completions.whole(call))

    async def _suggest(self, request: Request) -> Answer | EventStream:
        call = SuggestionCall.of_body(request.body)
        self._take_place()
        if call.streams:
            return await self._stream(self.suggesting.events(call))
        return await self._whole(self.suggesting.whole(call))

    def _take_place(self) -> None:
        """Count a request as open. Raises ApiError where there are as many as may be."""
        most = self.service.max_concurrent * (1 + _WAITING)
        if self.metrics.open_requests >= most:
            raise ApiError(503, f"{most} requests run or wait already, the most of --max-concurrent; come again")
        self.metrics.open_requests += 1

    async def _whole(self, text: Awaitable[str]) -> Answer:
        try:
            return _json(await text)
        except asyncio.CancelledError:
            self.metrics.hung_up += 1
            raise
        finally:
            self.metrics.open_requests -= 1

    async def _stream(self, events: Events) -> EventStream:
        """Return events whose first has come, so that what is wrong with the request is known before the answer."""
        counted = self._counted(events)
        return EventStream(await anext(counted), counted)

    async def _counted(self, events: Events) -> Events:
        try:
            async with aclosing(events):
                async for event in events:
                    yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.metrics.hung_up += 1
            raise
        finally:
            self.metrics.open_requests -= 1

    # --- everything else

    async def _in_thread(self, respond: Callable[[HeliumEngine, bytes], str], request: Request) -> Answer:
        return _json(await asyncio.to_thread(respond, self.engine, request.body))

    async def _refuse_chat(self, request: Request) -> Answer:
        raise ApiError(400, _NO_CHAT)

    async def _models(self, request: Request) -> Answer:
        model = {
            "id": self.service.model,
            "object": "model",
            "created": 0,
            "owned_by": "helium_mlx",
            "max_model_len": self.engine.config.max_position_embeddings,
        }
        return _json(to_json({"object": "list", "data": [model]}))

    async def _health(self, request: Request) -> Answer:
        if not self.engine.is_open:
            raise ApiError(503, "the engine has ended; start the server anew")
        return _json(to_json({"status": "ok"}))

    async def _tokenizer_info(self, request: Request) -> Answer:
        return _json(tokens.tokenizer_info(self.engine))

    async def _metrics(self, request: Request) -> Answer:
        return Answer(200, self.metrics.text().encode(), CONTENT_TYPE)

    async def _document(self, request: Request) -> Answer:
        from helium_mlx.server.openapi import document

        return _json(to_json(document()))


def _wrong_method(request: Request, allowed: str) -> ApiError:
    said = f"{shown(request.method)} is not for {request.path}; use {allowed.partition(',')[0]}"
    return ApiError(405, said, headers=[("allow", allowed)])


def _json(text: str) -> Answer:
    return Answer(200, (text + "\n").encode(), headers=[("cache-control", "no-store")])
