"""Connections: what is no request, what is too large or too slow, and several requests on one connection."""

import asyncio
import json
import socket
from http.client import HTTPConnection

import pytest
from served import Served, serving
from waiting import LONGEST_WAIT, wait_for

from helium_mlx.engine.engine import HeliumEngine
from helium_mlx.server.access import Access
from helium_mlx.server.http import Limits

HOST = b"Host: 127.0.0.1\r\n"
CLOSE = b"Connection: close\r\n"
COMPLETION = b'{"prompt": "Once", "max_tokens": 2, "temperature": 0}'


def head_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n")[0]


def error_of(answer: bytes) -> str:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\r\n\r\nnonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\n" + HOST + b"\r\n", b"505"),
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 100_000 + b"\r\n\r\n", b"431"),
        (b"GET /health HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 17_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", b"431"),
        (b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", b"400"),
        (b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", b"400"),
        (b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999\r\n\r\n", b"413"),
        (b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", b"501"),
        (b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
    ],
)
def test_what_is_no_request_is_answered_and_dropped(server: Served, sent: bytes, status: bytes) -> None:
    answer = server.raw(sent)
    assert head_of(answer).split()[1] == status, answer
    assert b"connection: close" in answer.lower()
    assert error_of(answer)


def test_a_body_without_end_is_refused_where_it_is_too_long(engine: HeliumEngine) -> None:
    with serving(engine, limits=Limits(body_bytes=1000)) as server:
        chunks = b"100\r\n" + b" " * 256 + b"\r\n"
        sent = b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks * 100
        answer = server.raw(sent)
        assert head_of(answer).split()[1] == b"413"
        assert "more than 1000 bytes" in error_of(answer)


def test_no_body_is_awaited_of_who_may_not_ask(engine: HeliumEngine) -> None:
    with serving(engine, access=Access("a-key-of-enough-characters", is_local=False)) as server:
        # Of the body nothing comes.
        answer = server.raw(b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000\r\n\r\n")
        assert head_of(answer).split()[1] == b"401"
        assert b"connection: close" in answer.lower()


def test_a_slow_request_is_dropped(engine: HeliumEngine) -> None:
    with serving(engine, limits=Limits(request=0.05)) as server:
        answer = server.raw(b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\n{")
        assert head_of(answer).split()[1] == b"408"


def test_a_silent_connection_is_dropped(engine: HeliumEngine) -> None:
    with serving(engine, limits=Limits(idle=0.05)) as server:
        assert server.raw(b"") == b""


def test_a_half_open_connection_is_dropped(server: Served) -> None:
    assert server.raw(b"POST /tokenize HTTP/1.1\r\n" + HOST, closes=True) == b""
    answer = server.raw(b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\n{", closes=True)
    assert head_of(answer).split()[1] == b"400"


def test_a_client_that_does_not_read_is_dropped(engine: HeliumEngine) -> None:
    with serving(engine, limits=Limits(write=0.05)) as server:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            asked = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True, "logprobs": 20, "n": 8}
            body = json.dumps(asked).encode()
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(body))
            connection.sendall(body)
            wait_for(lambda: server.app.metrics.open_requests == 1)
            wait_for(lambda: server.app.metrics.open_requests == 0)
            wait_for(lambda: not asyncio.all_tasks(server.loop))
        assert server.app.metrics.hung_up == 1


def test_connections_are_kept_and_requests_sent_ahead_are_answered_in_order(server: Served) -> None:
    one = b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(COMPLETION) + COMPLETION
    last = b"GET /health HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"
    answer = server.raw(one + b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n" + one + last)
    place = 0
    for kind in (b"text_completion", b'"list"', b"text_completion", b'"ok"'):
        place = answer.index(kind, place) + 1
    assert answer.count(b"HTTP/1.1 200 OK") == 4


def test_a_client_may_ask_whether_to_send_its_body(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=LONGEST_WAIT) as connection:
        connection.sendall(
            b"POST /tokenize HTTP/1.1\r\n" + HOST + CLOSE + b"Content-Length: 16\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 100")
        connection.sendall(b'{"prompt": "ab"}')
        answer = b""
        while data := connection.recv(1 << 16):
            answer += data
    assert b'"count"' in answer


def test_bodies_may_come_in_chunks(server: Served) -> None:
    sent = b"POST /tokenize HTTP/1.1\r\n" + HOST + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n"
    assert b'"count"' in server.raw(sent + b'8\r\n{"prompt\r\n6\r\n": "a"\r\n1\r\n}\r\n0\r\n\r\n')


def test_more_connections_than_there_may_be_are_told(engine: HeliumEngine) -> None:
    with serving(engine, limits=Limits(connections=1)) as server:
        first = HTTPConnection("127.0.0.1", server.port, timeout=LONGEST_WAIT)
        assert server.asked(first, "GET", "/health").read()
        assert head_of(server.raw(b"")).split()[1] == b"503"
        first.close()
        wait_for(lambda: not server.server._connections)
        assert server.ask("GET", "/health")[0] == 200


def test_other_protocols_are_not_switched_to(server: Served) -> None:
    asks = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    last = b"GET /health HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"
    answer = server.raw(b"GET /health HTTP/1.1\r\n" + HOST + asks + b"\r\n" + last)
    assert answer.count(b"HTTP/1.1 200") == 2
    answer = server.raw(b"CONNECT example.com:443 HTTP/1.1\r\n" + HOST + b"\r\n" + last)
    assert head_of(answer).split()[1] == b"404"
    assert answer.count(b"HTTP/1.1 200") == 1


def test_old_clients_are_answered_and_their_connection_closed(server: Served) -> None:
    answer = server.raw(b"GET /health HTTP/1.0\r\n" + HOST + b"\r\n")
    assert head_of(answer).split()[1] == b"200"
    body = b'{"prompt": "Once", "max_tokens": 2, "stream": true}'
    head = b"POST /v1/completions HTTP/1.0\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(body)
    answer = server.raw(head + body)
    assert b"chunked" not in answer
    assert answer.endswith(b"data: [DONE]\n\n")


def test_head_has_no_body(server: Served) -> None:
    status, headers, text = server.ask("HEAD", "/health")
    assert (status, text) == (200, "")
    assert int(headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("DELETE", "/v1/completions", 405), ("POST", "/health", 405), ("PUT", "/", 405),
     ("GET", "/page/../app.py", 404), ("GET", "/page/%2e%2e/app.py", 404), ("GET", "//etc/passwd", 404)],
)  # fmt: skip
def test_paths_that_there_are_not_are_one_line(server: Served, method: str, path: str, status: int) -> None:
    came, _, text = server.ask(method, path)
    assert came == status
    assert "\n" not in json.loads(text)["error"]["message"]


def test_a_server_that_ends_tells_streams(engine: HeliumEngine) -> None:
    with serving(engine) as server:
        asked = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True}
        connection = HTTPConnection("127.0.0.1", server.port, timeout=LONGEST_WAIT)
        answer = server.asked(connection, "POST", "/v1/completions", asked)
        assert answer.readline().startswith(b"data: ")
    text = answer.read().decode()
    connection.close()
    *_, error, done = [line.removeprefix("data: ") for line in text.split("\n") if line]
    assert done == "[DONE]"
    assert json.loads(error)["error"]["message"] == "the server ends"
