import io
import logging
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from helium_mlx.files.hub_client import prepare_session
from helium_mlx.publishing.progress import told_by_xet


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


def test_xet_tells_of_its_bytes_and_draws_nothing() -> None:
    reporting = pytest.importorskip("huggingface_hub.utils._xet_progress_reporting")
    drawn, told = reporting.XetUploadProgressReporter, []
    with told_by_xet(told.append):
        # As the client makes, calls and closes it.
        progress = reporting.XetUploadProgressReporter()
        progress.update_progress(SimpleNamespace(total_bytes_completed=7), {})
        progress.update_progress(SimpleNamespace(total_bytes_completed="none"), {})
        progress.update_progress(None)
        progress.close()
    assert told == [7, 0]
    assert reporting.XetUploadProgressReporter is drawn
