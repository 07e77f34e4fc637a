"""HTTP/1.1 on asyncio's streams, parsed by h11: what comes is bounded in size and time, and a leaving client is seen.

A `Handler` gets a whole request and returns an `Answer`, or an `EventStream`, whose events are sent as they come. It
runs as a task that is cancelled when the client hangs up. Requests of one connection are answered one after the other;
what is sent ahead of its turn is kept, up to a limit.

Not here: TLS, HTTP/2, compression, files of ranges. Whoever needs them puts a proxy in front.
"""

import asyncio
import http
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import h11

# What is read at a time.
_READ = 1 << 16

# For the last words of answers that are ended.
_LAST_SECONDS = 1.0

# Sent ahead by one connection while its request is worked on.
_MAX_AHEAD = 1 << 20


@dataclass(frozen=True)
class Limits:
    """How much a client may send, how many there may be, and how long, in seconds, they are waited for."""

    header_bytes: int = 1 << 14
    body_bytes: int = 1 << 22
    connections: int = 1024
    # Between two requests, for a whole request once it has begun, and for a client that does not read.
    idle: float = 75.0
    request: float = 30.0
    write: float = 60.0


@dataclass(frozen=True)
class Request:
    """A request whose body has come. Names of headers are lower case; `path` is without a query."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Sequence[tuple[str, str]] = ()


Events = AsyncGenerator[str, None]


@dataclass(frozen=True)
class EventStream:
    """An answer of server-sent events, each the text of its `data`.

    The first has come from the generator, which is closed whatever happens to the rest.
    """

    first: str
    events: Events
    headers: Sequence[tuple[str, str]] = ()


Handler = Callable[[Request], Awaitable[Answer | EventStream]]
Refusal = Callable[[int, str], Answer]
"""The answer to what is no request, for a status and a sentence."""
TurnAway = Callable[[Request], Answer | None]


class _RefusedError(Exception):
    """A request that is not read to its end; the connection ends with the answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class _HungUpError(Exception):
    """The client has gone, or is too slow to be waited for."""


@dataclass
class HttpServer:
    """Listens, and answers each connection until it ends. `handler` must not raise but for being cancelled.

    `turn_away` is asked before a body is read, with the request's head, and may answer already.
    """

    handler: Handler
    refusal: Refusal
    limits: Limits = field(default_factory=Limits)
    turn_away: TurnAway | None = None

    def __post_init__(self) -> None:
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> int:
        """Take connections, and return the port, which the system picks for 0. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=_READ, backlog=512)
        return self._server.sockets[0].getsockname()[1]

    async def close(self, grace: float, end_answers: Callable[[], None]) -> None:
        """Take no more connections, and let answers end for `grace` seconds.

        Then `end_answers` is to have those that are left end themselves; a second later they are cancelled.
        """
        if self._server is not None:
            self._server.close()
        for connection in self._connections.values():
            connection.finish()
        await self._ended(grace)
        end_answers()
        for task in await self._ended(_LAST_SECONDS):
            task.cancel()
        await self._ended(_LAST_SECONDS)

    async def _ended(self, timeout: float) -> Sequence["asyncio.Task[None]"]:
        """Wait for the connections, and return those that are left after `timeout` seconds."""
        tasks = list(self._connections)
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)
        return list(self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(reader, writer, self.handler, self.refusal, self.limits, self.turn_away)
        is_one_too_many = len(self._connections) >= self.limits.connections
        self._connections[task] = connection
        try:
            if is_one_too_many:
                said = f"the server has {self.limits.connections} connections; come again"
                await connection.refuse(self.refusal(503, said))
            else:
                await connection.run()
        except (_HungUpError, OSError):
            # What was not sent has nobody to go to.
            writer.transport.abort()
        finally:
            try:
                await self._closed(writer)
            finally:
                del self._connections[task]

    async def _closed(self, writer: asyncio.StreamWriter) -> None:
        """Close a connection once what was written is sent; at once if the client takes too long to read it."""
        writer.close()
        try:
            await asyncio.wait_for(writer.wait_closed(), self.limits.write)
        except asyncio.TimeoutError:
            writer.transport.abort()
        except OSError:
            pass


class _Connection:
    """One client."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handler: Handler,
        refusal: Refusal,
        limits: Limits,
        turn_away: TurnAway | None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._handler = handler
        self._refusal = refusal
        self._limits = limits
        self._turn_away = turn_away
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.header_bytes)
        self._ahead = 0
        self._is_finishing = False
        self._waiting: asyncio.Task[bytes] | None = None

    def finish(self) -> None:
        """Close after the answer that is on its way; at once if there is none."""
        self._is_finishing = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def run(self) -> None:
        """Answer requests until the client, or an error, ends the connection."""
        while not self._is_finishing:
            try:
                request = await self._next_request()
            except _RefusedError as refused:
                await self.refuse(refused.answer)
                return
            if request is None:
                return
            await self._answer(request)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def refuse(self, answer: Answer) -> None:
        """Answer what is no request, and let go of what else comes."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self._send_whole(answer, ends=True)
        # Else the system would reset the connection over what was not read, and the answer would be lost.
        self._writer.write_eof()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._drop(), 1.0)

    async def _drop(self) -> None:
        left = self._limits.body_bytes
        while left > 0 and (data := await self._reader.read(_READ)):
            left -= len(data)

    # --- what comes

    async def _next_request(self) -> Request | None:
        """Return the next request whole, None where the client is through. Raises _RefusedError for what is none."""
        if self._http.trailing_data[0] == b"" and not await self._more(self._limits.idle):
            return None
        try:
            return await asyncio.wait_for(self._request(), self._limits.request)
        except asyncio.TimeoutError:
            raise self._refused(408, f"the request did not come whole within {self._limits.request:g} s") from None
        except h11.RemoteProtocolError as error:
            raise self._refused(error.error_status_hint, f"that is not HTTP/1.1: {error}") from None

    async def _more(self, timeout: float | None = None) -> bool:
        """Read some bytes; return whether there were any. None too within `timeout` counts as none."""
        self._waiting = asyncio.ensure_future(self._reader.read(_READ))
        try:
            data = await asyncio.wait_for(self._waiting, timeout)
        except asyncio.TimeoutError:
            return False
        except asyncio.CancelledError:
            if self._is_finishing and self._waiting.cancelled():
                return False
            raise
        finally:
            self._waiting = None
        self._http.receive_data(data)
        return bool(data)

    async def _request(self) -> Request | None:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    await self._send(h11.InformationalResponse(status_code=100, headers=[]))
                if not await self._more() and self._http.our_state is h11.IDLE:
                    return None
            elif isinstance(event, h11.Request):
                head = event
                # h11 bounds what is incomplete; all of a head may come at once.
                if _size_of(head) > self._limits.header_bytes:
                    raise self._refused(431, f"the head has more than {self._limits.header_bytes} bytes")
                if not head.http_version.startswith(b"1."):
                    raise self._refused(505, "only HTTP/1.1 is spoken here")
                self._require_length(head)
                self._require_welcome(head)
            elif isinstance(event, h11.Data):
                body += event.data
                self._require_room(len(body))
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                return _as_request(head, bytes(body))
            else:
                return None

    def _require_length(self, head: h11.Request) -> None:
        for name, value in head.headers:
            if name == b"content-length":
                self._require_room(int(value))

    def _require_room(self, size: int) -> None:
        if size > self._limits.body_bytes:
            raise self._refused(413, f"the body has more than {self._limits.body_bytes} bytes")

    def _require_welcome(self, head: h11.Request) -> None:
        """Let nobody send a body who will not be answered; a request without one is the handler's."""
        names = {name for name, _ in head.headers}
        if self._turn_away is None or not names & {b"content-length", b"transfer-encoding"}:
            return
        answer = self._turn_away(_as_request(head, b""))
        if answer is not None:
            raise _RefusedError(answer)

    def _refused(self, status: int, message: str) -> _RefusedError:
        return _RefusedError(self._refusal(status, message))

    # --- what goes

    async def _answer(self, request: Request) -> None:
        """Send what the handler returns. It is cancelled, and _HungUpError raised, where the client goes before."""
        answering = asyncio.ensure_future(self._respond(request))
        hanging = asyncio.ensure_future(self._hung_up())
        try:
            await asyncio.wait([answering, hanging], return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise _HungUpError
            await answering
        finally:
            for task in (answering, hanging):
                task.cancel()
            await asyncio.gather(answering, hanging, return_exceptions=True)

    async def _hung_up(self) -> None:
        """Return once the client has closed its side. What it sends ahead is kept; too much of it counts as such."""
        while data := await self._reader.read(_READ):
            self._http.receive_data(data)
            self._ahead += len(data)
            if self._ahead > _MAX_AHEAD:
                return

    async def _respond(self, request: Request) -> None:
        answer = await self._handler(request)
        self._ahead = 0
        if isinstance(answer, Answer):
            await self._send_whole(answer, ends=self._is_finishing, has_body=request.method != "HEAD")
            return
        async with aclosing(answer.events) as events:
            await self._send(
                h11.Response(
                    status_code=200,
                    reason=b"OK",
                    headers=[
                        ("content-type", "text/event-stream; charset=utf-8"),
                        ("cache-control", "no-store"),
                        *answer.headers,
                    ],
                )
            )
            await self._send(_event(answer.first))
            async for data in events:
                await self._send(_event(data))
            await self._send(h11.EndOfMessage())

    async def _send_whole(self, answer: Answer, *, ends: bool, has_body: bool = True) -> None:
        headers = [("content-type", answer.content_type), ("content-length", str(len(answer.body))), *answer.headers]
        if ends:
            headers.append(("connection", "close"))
        reason = http.HTTPStatus(answer.status).phrase.encode()
        await self._send(
            h11.Response(status_code=answer.status, reason=reason, headers=headers),
            *([h11.Data(data=answer.body)] if has_body and answer.body else []),
            h11.EndOfMessage(),
        )

    async def _send(self, *events: h11.Event) -> None:
        self._writer.write(b"".join(self._http.send(event) or b"" for event in events))
        try:
            await asyncio.wait_for(self._writer.drain(), self._limits.write)
        except asyncio.TimeoutError:
            raise _HungUpError from None


def _event(data: str) -> h11.Data:
    return h11.Data(data=f"data: {data}\n\n".encode())


def _size_of(head: h11.Request) -> int:
    return len(head.target) + sum(len(name) + len(value) + 4 for name, value in head.headers)


def _as_request(head: h11.Request, body: bytes) -> Request:
    headers: dict[str, str] = {}
    for name, value in head.headers:
        key, text = name.decode("ascii"), value.decode("latin-1")
        # One that is there twice is never taken for either; none that is looked at may come twice.
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    path = head.target.decode("latin-1").partition("?")[0]
    return Request(head.method.decode("ascii"), path, headers, body)
