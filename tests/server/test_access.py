"""Who may ask a server: a test for each rule of SECURITY.md."""

import json
from collections.abc import Iterator

import pytest
from served import Served, serving

from helium_mlx.engine.engine import HeliumEngine
from helium_mlx.server.access import Access, is_loopback

KEY = "a-key-of-enough-characters"
ASKED = {"prompt": "Once", "max_tokens": 1}


@pytest.fixture(scope="module")
def locked(engine: HeliumEngine) -> Iterator[Served]:
    with serving(engine, access=Access(KEY, {"https://editor.example"}, is_local=False)) as served:
        yield served


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:{port}", "localhost:{port}", "LOCALHOST", "[::1]:1"])
def test_names_of_this_machine_are_answered(server: Served, host: str) -> None:
    assert server.ask("POST", "/v1/completions", ASKED, {"Host": host.format(port=server.port)})[0] == 200


@pytest.mark.parametrize(
    "host", ["attacker.example", "attacker.example:8080", "127.0.0.1.attacker.example", "localhost.x", "", "0.0.0.0"]
)
def test_other_names_are_not_even_where_they_lead_here(server: Served, host: str) -> None:
    status, _, text = server.ask("POST", "/v1/completions", ASKED, {"Host": host})
    assert (status, json.loads(text)["error"]["type"]) == (403, "permission_error")
    assert server.ask("GET", "/", None, {"Host": host})[0] == 403


def test_pages_of_the_server_itself_may_ask(server: Served) -> None:
    host = f"127.0.0.1:{server.port}"
    status, headers, _ = server.ask("POST", "/v1/completions", ASKED, {"Host": host, "Origin": f"http://{host}"})
    assert status == 200
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("origin", ["http://attacker.example", "null", "http://127.0.0.1:1", "file://", ""])
def test_pages_from_elsewhere_may_not(server: Served, origin: str) -> None:
    status, headers, text = server.ask("POST", "/v1/completions", ASKED, {"Origin": origin})
    assert status == 403
    assert "--allow-origin" in text
    assert "access-control-allow-origin" not in headers
    assert server.ask("OPTIONS", "/v1/completions", None, {"Origin": origin})[0] == 403


def test_a_page_that_was_named_may(locked: Served) -> None:
    origin = {"Origin": "https://editor.example"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, x-stainless-os"}
    status, headers, _ = locked.ask("OPTIONS", "/v1/completions", None, {**origin, **asks})
    assert status == 204
    assert headers["access-control-allow-origin"] == "https://editor.example"
    assert headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    status, headers, _ = locked.ask("POST", "/v1/completions", ASKED, {**origin, "Authorization": f"Bearer {KEY}"})
    assert (status, headers["access-control-allow-origin"]) == (200, "https://editor.example")


@pytest.mark.parametrize(
    "authorization", [None, "Bearer", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer \xff", KEY]
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/metrics", "/openapi.json", "/nowhere"])
def test_nothing_is_told_without_the_key(locked: Served, path: str, authorization: str | None) -> None:
    method = "POST" if path == "/v1/completions" else "GET"
    headers = {} if authorization is None else {"Authorization": authorization}
    status, answered, text = locked.ask(method, path, ASKED if method == "POST" else None, headers)
    assert (status, answered["www-authenticate"]) == (401, "Bearer")
    assert KEY not in text


def test_with_the_key_the_name_of_the_host_may_be_any(locked: Served) -> None:
    headers = {"Host": "mac.local:8080", "Authorization": f"bearer {KEY}"}
    assert locked.ask("POST", "/v1/completions", ASKED, headers)[0] == 200


def test_the_page_itself_needs_no_key_and_runs_nothing_of_others(locked: Served) -> None:
    status, headers, text = locked.ask("GET", "/")
    assert status == 200
    assert "<title>" in text
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert locked.ask("GET", "/health")[0] == 200


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True), ("0.0.0.0", False),
     ("192.168.1.2", False), ("", False), ("127.0.0.1.example.com", False)],
)  # fmt: skip
def test_addresses_of_this_machine_alone_are_known(host: str, is_local: bool) -> None:
    assert is_loopback(host) == is_local
