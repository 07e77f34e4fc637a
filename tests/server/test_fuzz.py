"""Hostile requests: each gets an answer of 4xx or none, no traceback is printed, and the server answers after it.

HELIUM_MLX_FUZZ_CASES=5000 tries more.
"""

import json
import os
import random
import re
import socket
from collections.abc import Iterator

import pytest
from served import Served, serving
from waiting import LONGEST_WAIT, wait_for

from helium_mlx.engine.engine import HeliumEngine
from helium_mlx.server.http import Limits
from helium_mlx.server.parameters import COMPLETION, DETOKENIZE, SUGGESTION, TOKENIZE

CASES = int(os.environ.get("HELIUM_MLX_FUZZ_CASES", "300"))
TABLES = {
    "/v1/completions": COMPLETION,
    "/v1/suggestions": SUGGESTION,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
}
BODY = b'{"prompt": "Once", "max_tokens": 1}'
SOUND = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
VALUES: list[object] = [
    None, True, False, 0, -1, 1, 2**63, 2**64, 10**300, -(10**300), 0.5, 1e308, -1e-308, "", "x", "\x00", "\ud800",
    "é" * 99, "a" * 70_000, [], [None], [[]], [[[]]], {}, {"a": {}}, [1, 2], [-1], [10**18], [0.5], ["x"] * 200,
    ["", "x"],
    {"": 1}, {"1": 1e9}, {"1": None}, {"-1": 1}, {"99999999": 1},
]  # fmt: skip


def drawn_body(draw: random.Random, path: str) -> bytes:
    table = TABLES[path]
    names = [*table, "suffix", "__proto__", "", "N", "prompt "]
    body = {name: draw.choice(VALUES) for name in draw.sample(names, draw.randint(1, 5))}
    if draw.random() < 0.7:
        body.setdefault("max_tokens", 1)
    text = json.dumps(body, allow_nan=True)
    return mutated(draw, text.encode()) if draw.random() < 0.4 else text.encode()


def mutated(draw: random.Random, text: bytes) -> bytes:
    """The text with some bytes changed, left out, doubled or swapped."""
    data = bytearray(text)
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(data) or 1)
        match draw.randrange(4):
            case 0:
                data[place : place + 1] = bytes([draw.randrange(256)])
            case 1:
                del data[place : place + draw.randint(1, 9)]
            case 2:
                data[place:place] = data[place : place + draw.randint(1, 30)]
            case _:
                data[place:place] = draw.choice([b"\r\n", b"\r\n\r\n", b"\x00", b"\xff", b'"', b"[" * 40, b"{", b": "])
    return bytes(data)


def drawn_request(draw: random.Random) -> bytes:
    kind = draw.randrange(5)
    if kind == 0:
        return mutated(draw, SOUND)
    if kind == 1:
        return bytes(draw.randrange(256) for _ in range(draw.randint(1, 3000)))
    path = draw.choice([*TABLES, "/v1/chat/completions", "/nowhere", "/v1/models"])
    body = drawn_body(draw, path) if path in TABLES else b"{}"
    headers = [b"Host: localhost"]
    if kind == 2:
        pieces = [body[at : at + 50] for at in range(0, len(body), 50)]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        headers.append(b"Transfer-Encoding: chunked")
        body = mutated(draw, chunks) if draw.random() < 0.5 else chunks
    else:
        length = len(body) if draw.random() < 0.8 else draw.choice([0, 1, len(body) + 9, -1, 10**12])
        headers.append(b"Content-Length: %d" % length)
    if draw.random() < 0.3:
        name = draw.choice([b"Origin", b"Authorization", b"Expect", b"Connection", b"Host", b"Content-Type", b"X"])
        headers.append(name + b": " + mutated(draw, b"http://localhost:1, 100-continue, Bearer x"))
    head = b"POST " + path.encode() + b" HTTP/1.1\r\n" + b"\r\n".join(headers) + b"\r\n\r\n"
    sent = head + body
    # Sent ahead of the answer: another one, whole or in part.
    return sent + SOUND[: draw.randint(0, len(SOUND))] if draw.random() < 0.3 else sent


def is_whole(answer: bytes) -> bool:
    """Whether the first answer has come."""
    head, end, body = answer.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head)
    return bool(end) and (len(body) >= int(found[1]) if found else body.endswith(b"0\r\n\r\n"))


@pytest.fixture(scope="module")
def attacked(engine: HeliumEngine) -> Iterator[Served]:
    with serving(engine, limits=Limits(request=0.1, idle=0.1)) as server:
        yield server


def test_whatever_is_sent_the_server_stays_and_says_no_more_than_that(
    attacked: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    for case in range(CASES):
        sent = drawn_request(random.Random(case))
        with socket.create_connection(("127.0.0.1", attacked.port), timeout=LONGEST_WAIT) as connection:
            answer = b""
            try:
                connection.sendall(sent)
                if case % 4 == 0:
                    # As a client that hangs up.
                    connection.shutdown(socket.SHUT_WR)
                while not is_whole(answer) and (data := connection.recv(1 << 16)):
                    answer += data
            except TimeoutError:
                raise
            except OSError:
                # The server has closed it already.
                pass
        # Messages may quote what came, in the middle of a line.
        statuses = [int(status) for status in re.findall(rb"(?m)^HTTP/1\.1 (\d{3}) ", answer)]
        assert all(status < 500 or status in (501, 505) for status in statuses), (case, sent[:300], answer[-600:])
    assert attacked.completion(prompt="Once", max_tokens=1)["choices"]
    wait_for(lambda: attacked.app.metrics.open_requests == 0)
    assert capfd.readouterr() == ("", "")
