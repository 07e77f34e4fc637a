"""A stand-in for the server, of the standard library alone: the page's endpoints with answers that are always the same.

Its "model" knows a few words, each as probable as a checksum of it and the word before says. Run by itself it prints
its address, so that the page can be worked on without a model: `python tests/server/page_standin.py [PORT]`.
"""

import json
import math
import random
import re
import select
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

PAGE = Path(__file__).parents[2] / "helium_mlx" / "server" / "page"
CONTEXT = 4096
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# As the server has it.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
WORDS = re.findall(
    r"\w+",
    "the a old small grey river house garden window light morning evening captain sister letter train sea hill door "
    "went came saw found opened wrote heard left slowly again once there under over with without and but when where "
    "nobody somebody she he they",
)
_TOKEN = re.compile(r" ?[^\W\d_]+| ?\d+| ?[^\w\s]|\s|.", re.DOTALL)


def tokens_of(text: str) -> list[str]:
    """Return a text's tokens: words and marks, each with the space before it."""
    return _TOKEN.findall(text)


@lru_cache(maxsize=10_000)
def likeliest(before: str) -> dict[str, float]:
    """Return the log-probabilities of all that the model knows to follow a token, the likeliest first."""
    known = [" " + word for word in WORDS] + [".", ",", "\n"]
    if before in ("", " ", "\n"):
        known = [token.lstrip(" ") for token in known]
    weights = {token: (zlib.crc32(f"{before}|{token}".encode()) % 1000) / 125 for token in known}
    total = math.log(sum(math.exp(weight) for weight in weights.values()))
    return dict(sorted(((token, weight - total) for token, weight in weights.items()), key=lambda pair: -pair[1]))


def logprob(before: str, token: str) -> float:
    """Return what a token is worth after another; one that the model does not know has a low value of its own."""
    known = likeliest(before)
    return known[token] if token in known else -6 - (zlib.crc32(token.encode()) % 400) / 100


def continuation(prompt: str, given: Mapping[str, object], index: int) -> Iterator[str]:
    """Yield the tokens of one completion."""
    seed, temperature = given.get("seed"), cast(float, given.get("temperature", 1.0))
    draw = random.Random(f"{seed}|{prompt}|{index}")
    before = (tokens_of(prompt) or [""])[-1]
    for _ in range(cast(int, given.get("max_tokens", 16))):
        known = likeliest(before)
        weights = [math.exp(value / max(temperature, 0.01)) for value in known.values()]
        before = next(iter(known)) if temperature == 0 else draw.choices(list(known), weights)[0]
        yield before


@dataclass
class StandIn:
    """A running stand-in. `requests` has each body by its path; while `gate` is not set, answers with texts wait.

    `hung_up` counts streams that a client left before their end. `status` other than 200 answers every POST.
    """

    server: ThreadingHTTPServer
    requests: list[tuple[str, dict]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    hung_up: int = 0
    status: int = 200
    pace: float = 0.0
    connections: set[socket.socket] = field(default_factory=set)

    @property
    def address(self) -> str:
        """Return where it listens."""
        return f"http://127.0.0.1:{self.server.server_address[1]}/"

    def asked(self, path: str) -> list[dict]:
        """Return the bodies of all requests to a path."""
        return [body for at, body in list(self.requests) if at == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    standin: StandIn

    def setup(self) -> None:
        """Note the connection, which may stay open between requests."""
        super().setup()
        self.standin.connections.add(self.connection)

    def finish(self) -> None:
        """Forget the connection."""
        self.standin.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/health":
            self._json({"status": "ok"})
        elif path == "/v1/models":
            model = {"id": "stand-in", "object": "model", "created": 0, "owned_by": "tests", "max_model_len": CONTEXT}
            self._json({"object": "list", "data": [model]})
        else:
            file = PAGE / ("index.html" if path == "/" else path.removeprefix("/page/"))
            if file.parent != PAGE or not file.is_file() or file.suffix not in TYPES:
                self._error(404, "there is nothing here")
                return
            self._send(file.read_bytes(), TYPES[file.suffix])

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
        self.standin.requests.append((self.path, given))
        if self.standin.status != 200:
            self._error(self.standin.status, "the stand-in was told to refuse this")
            return
        prompt = given.get("prompt", "")
        if self.path == "/tokenize":
            texts = tokens_of(prompt)
            ids = [zlib.crc32(text.encode()) % 32000 for text in texts]
            self._json({"tokens": ids, "texts": texts, "count": len(texts) + 1, "max_model_len": CONTEXT})
        elif len(tokens_of(prompt)) + 1 + given.get("max_tokens", 0) > CONTEXT:
            self._error(400, f"the prompt has more than {CONTEXT} tokens", "context_length_exceeded")
        elif self.path == "/v1/suggestions":
            self._suggest(prompt, given)
        elif self.path == "/v1/completions":
            self._complete(prompt, given)
        else:
            self._error(404, "there is nothing here")

    # --- answers

    def _suggest(self, prompt: str, given: Mapping[str, object]) -> None:
        words = list(continuation(prompt, {"temperature": 0, "max_tokens": given.get("max_words", 8)}, 0))
        whole = {
            "object": "suggestions",
            "suggestions": [{"text": "".join(words), "probability": 0.5, "index": 0}],
            "ended": "words",
            "usage": _usage(len(tokens_of(prompt)) + 1, len(words)),
        }
        if not given.get("stream"):
            self._json(whole)
            return
        self._stream([*({"index": 0, "text": word, "probability": 0.5} for word in words), whole])

    def _complete(self, prompt: str, given: Mapping[str, object]) -> None:
        count = cast(int, given.get("n", 1))
        written = [list(continuation(prompt, given, index)) for index in range(count)]
        stops = cast("Sequence[str]", given.get("stop") or [])
        written = [_stopped(tokens, stops) for tokens in written]
        usage = _usage(len(tokens_of(prompt)) + 1, sum(map(len, written)))
        base = {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": "stand-in"}
        if not given.get("stream"):
            try:
                self._wait()
            except OSError:
                self.standin.hung_up += 1
                self.close_connection = True
                return
            choices = [
                {
                    "text": (prompt if given.get("echo") else "") + "".join(tokens),
                    "index": index,
                    "finish_reason": "length",
                    "logprobs": _logprobs(prompt, cast(int, given["logprobs"])) if "logprobs" in given else None,
                }
                for index, tokens in enumerate(written)
            ]
            self._json({**base, "choices": choices, "usage": usage})
            return
        events = []
        for place in range(max(map(len, written), default=0)):
            for index, tokens in enumerate(written):
                if place < len(tokens):
                    reason = "length" if place == len(tokens) - 1 else None
                    choice = {"text": tokens[place], "index": index, "logprobs": None, "finish_reason": reason}
                    events.append({**base, "choices": [choice]})
        self._stream(events)

    # --- how they are sent

    def _stream(self, events: Sequence[Mapping[str, object]]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            for event in events:
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()
                self._wait()
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.standin.hung_up += 1

    def _wait(self) -> None:
        """Wait for the gate, and for the pace; raise OSError once the client has left."""
        until = time.monotonic() + self.standin.pace
        while not self.standin.gate.is_set() or time.monotonic() < until:
            if select.select([self.connection], [], [], 0.01)[0] and not self.connection.recv(1):
                raise ConnectionResetError

    def _json(self, answer: Mapping[str, object], status: int = 200) -> None:
        self._send(json.dumps(answer).encode(), "application/json", status)

    def _error(self, status: int, message: str, code: str | None = None) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        self._json({"error": error}, status)

    def _send(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        for name, value in (
            ("content-type", kind),
            ("content-length", str(len(content))),
            ("content-security-policy", POLICY),
            ("cache-control", "no-cache"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _stopped(tokens: Sequence[str], stops: Sequence[str]) -> list[str]:
    """Return the tokens up to a text to stop at."""
    for place in range(len(tokens)):
        text = "".join(tokens[: place + 1])
        ends = [text.index(stop) for stop in stops if stop in text]
        if ends:
            before = "".join(tokens[:place])
            return [*tokens[:place], text[len(before) : min(ends)]]
    return list(tokens)


def _usage(prompt: int, completion: int) -> dict[str, object]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def _logprobs(prompt: str, count: int) -> dict[str, object]:
    tokens = tokens_of(prompt)
    values, tops, offsets = [], [], []
    for place, token in enumerate(tokens):
        before = tokens[place - 1] if place else ""
        values.append(logprob(before, token))
        tops.append({**dict(list(likeliest(before).items())[:count]), token: values[-1]})
        offsets.append(sum(map(len, tokens[:place])) if place < 2 else offsets[-1] + len(tokens[place - 1]))
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


@contextmanager
def standing_in(port: int = 0) -> Iterator[StandIn]:
    """Serve meanwhile, on a port of 127.0.0.1 that the system picks for 0."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    handler.standin = standin = StandIn(server)
    standin.gate.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield standin
    finally:
        standin.gate.set()
        server.shutdown()
        thread.join()
        for connection in list(standin.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()


if __name__ == "__main__":
    with standing_in(int(sys.argv[1]) if len(sys.argv) > 1 else 0) as running:
        running.pace = 0.03
        print(running.address, flush=True)
        threading.Event().wait()
