import io
import logging
from collections.abc import Iterator

import pytest

from helium_mlx.files.hub_client import prepare_session
from helium_mlx.publishing.progress import upload_progress


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Takes back what the session's owner would keep for its whole process."""
    from huggingface_hub import close_session

    handlers = logging.getLogger("huggingface_hub").handlers
    before = [(handler, list(handler.filters)) for handler in handlers]
    yield
    close_session()
    for handler, filters in before:
        handler.filters[:] = filters


@pytest.mark.parametrize("asked", [{}, {"timeout": None}, {"timeout": 60}])
def test_each_request_gives_up_on_silence_whatever_the_client_asks_for(asked: dict[str, int | None]) -> None:
    from huggingface_hub import get_session

    prepare_session(timeout=9)
    prepare_session(timeout=7)
    request = get_session().build_request("GET", "http://localhost", **asked)  # pyright: ignore[reportArgumentType]
    for hook in get_session().event_hooks["request"]:
        hook(request)
    assert request.extensions["timeout"] == {"connect": 7, "read": 7, "write": 7, "pool": 7}


def test_the_clients_log_lines_lose_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.utils

    assert huggingface_hub.utils
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (handler,) = logging.getLogger("huggingface_hub").handlers
    assert isinstance(handler, logging.StreamHandler)
    prepare_session(timeout=7)
    shown = io.StringIO()
    before = handler.setStream(shown)
    try:
        logging.getLogger("huggingface_hub.utils._http").warning("%s and %s", "hf_secret", "more")
    finally:
        handler.setStream(before)
    assert shown.getvalue() == "*** and more\n"


def test_progress_is_ours_in_a_log_and_the_clients_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    assert upload_progress() is not None
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert upload_progress() is None
