import importlib

import pytest
from huggingface_hub.errors import HfHubHTTPError

from helium_mlx.files.hub_client import client_errors, explained, is_unanswered, without_token

# httpx2 or httpx, whichever this version of the client has.
httpx = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])


def answered(status: int, message: str | None = "why\n not.") -> HfHubHTTPError:
    response = httpx.Response(status, request=httpx.Request("POST", "http://localhost"))
    return HfHubHTTPError("long\n\ntext", response=response, server_message=message)


def wrapped(error: Exception) -> RuntimeError:
    outer = RuntimeError("Error while uploading")
    outer.__cause__ = error
    return outer


def test_the_transports_errors_are_the_clients() -> None:
    assert issubclass(httpx.ConnectError, client_errors())
    assert issubclass(HfHubHTTPError, client_errors())


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 418, 429, 500, 503])
def test_what_the_server_says_is_in_one_line(status: int) -> None:
    said = explained(answered(status), "a/b", writing=True)
    assert f"({status}, why not)" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("kyutai/helium-1-2b-sience", "kyutai/helium-1-2b-science"),
        ("kyutai/helium-1-preview-2B", "kyutai/helium-1-preview-2b"),
        ("mlx-community/helium-1-preview-4bit", "mlx-community/helium-1-preview-2b-4bit"),
        ("somebody/else", None),
        ("kyutai/helium-1-2b", None),
    ],
)
def test_a_name_that_is_nearly_one_of_ours_is_answered_with_it(asked: str, near: str | None) -> None:
    said = explained(answered(404), asked, writing=False)
    assert (f"check the name (near it: {near})" if near else "check the name") in said
    assert near or "near it" not in said
    assert "near it" not in explained(answered(404), asked, writing=True)


def test_without_words_of_the_server_the_status_is_said() -> None:
    assert "(403)" in explained(answered(403, None), "a/b", writing=True)


def test_the_cause_of_a_thread_s_error_is_what_counts() -> None:
    assert "may not write" in explained(wrapped(wrapped(answered(403))), "a/b", writing=True)


def test_only_an_answer_says_that_nothing_was_done() -> None:
    assert is_unanswered(httpx.ReadTimeout("x"))
    assert is_unanswered(answered(502))
    assert not is_unanswered(answered(412))


def test_a_token_is_not_legible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert without_token("a hf_secret b") == "a *** b"
    assert "hf_secret" not in explained(httpx.ConnectError("no hf_secret"), "a/b", writing=True)
