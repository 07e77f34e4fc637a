"""A server in a thread of the test's process, and clients of it."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse

from waiting import LONGEST_WAIT

from helium_mlx.engine.engine import HeliumEngine
from helium_mlx.generation.streaming import stream_generate
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.server.access import Access
from helium_mlx.server.app import App, Service
from helium_mlx.server.errors import refusal
from helium_mlx.server.http import HttpServer, Limits
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]
PROMPT = "Once upon a time"


def expected(demo: Demo, prompt: str | list[int] = PROMPT, **options: object) -> str:
    """What follows a prompt, the space that parts it from the prompt included."""
    chunks = list(stream_generate(*demo, prompt, **options))  # pyright: ignore[reportArgumentType]
    return (" " if chunks[0].leading_space else "") + "".join(chunk.text for chunk in chunks)


@dataclass
class Served:
    """A running server, and how it is asked."""

    app: App
    port: int
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    server: HttpServer
    headers: dict[str, str] = field(default_factory=dict)

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, str], str]:
        """Return status, headers by lower-case names, and text of one answer on a connection of its own."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=LONGEST_WAIT)
        try:
            answer = self.asked(connection, method, path, body, headers)
            text = answer.read().decode()
        finally:
            connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text

    def asked(
        self,
        connection: HTTPConnection,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> HTTPResponse:
        """Send a request, a JSON one unless its body is bytes, and return the answer's beginning."""
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, content, {**self.headers, **(headers or {})})
        return connection.getresponse()

    def completion(self, **parameters: object) -> dict:
        """Return the completion object of a request that must succeed."""
        status, _, text = self.ask("POST", "/v1/completions", parameters)
        assert status == 200, text
        return json.loads(text)

    def events(self, **parameters: object) -> list[dict]:
        """Return the events of a request that streams; it must end as it should."""
        status, headers, text = self.ask("POST", "/v1/completions", {**parameters, "stream": True})
        assert status == 200, text
        assert headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert events.pop() == "[DONE]"
        return [json.loads(event) for event in events]

    def error(self, parameters: object, *, path: str = "/v1/completions", status: int = 400) -> dict:
        """Return the error that a request is answered with."""
        came, _, text = self.ask("POST", path, parameters)
        assert came == status, text
        error = json.loads(text)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert "\n" not in error["message"]
        return error

    def raw(self, sent: bytes, *, closes: bool = False) -> bytes:
        """Return all that comes back for some bytes on a connection of their own, until it is closed."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=LONGEST_WAIT) as connection:
            connection.sendall(sent)
            if closes:
                connection.shutdown(socket.SHUT_WR)
            received = b""
            while data := connection.recv(1 << 16):
                received += data
        return received


@contextmanager
def serving(
    engine: HeliumEngine,
    *,
    service: Service | None = None,
    access: Access | None = None,
    limits: Limits | None = None,
) -> Iterator[Served]:
    """Serve an engine on loopback meanwhile."""
    app = App(engine, service or Service("demo"), access or Access())
    server = HttpServer(app, refusal, limits or Limits(), app.turn_away)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        port = asyncio.run_coroutine_threadsafe(server.listen("127.0.0.1", 0), loop).result(LONGEST_WAIT)
        yield Served(app, port, loop, thread, server)
    finally:
        asyncio.run_coroutine_threadsafe(server.close(0.0, app.end), loop).result(LONGEST_WAIT)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LONGEST_WAIT)
        loop.close()
