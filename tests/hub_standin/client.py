"""The real client, pointed at a stand-in: by the environment for another process, or in this one."""

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest
from processes import run_command

from helium_mlx.files import hub_client
from hub_standin.server import HubStandIn

if TYPE_CHECKING:
    from httpx2 import Request

TOKEN = "hf_a_secret_that_is_never_printed"

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def environment(hub_url: str, home: Path, **more: str) -> dict[str, str]:
    """Return the environment in which the client talks to a stand-in, with a token, and without Xet, which it lacks."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and key not in _PROXIES}
    set_ = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    return kept | set_ | {"HF_TOKEN": TOKEN} | more


def run(hub_url: str, home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the package in a process of its own."""
    return run_command(*arguments, env=environment(hub_url, home, **more), cwd=home.parent)


class Clock:
    """Stands for the module `time` where the client waits between tries; remembers the waits, and does not wait."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def sleep(self, seconds: float) -> None:
        """Note a wait."""
        self.waits.append(seconds)

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


def hasten_silence(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let limits of seconds pass in milliseconds where a stand-in is silent; others stay, however busy the machine."""
    limit = hub_client._Limits.before

    def before(limits: hub_client._Limits, request: "Request") -> None:
        limit(limits, request)
        if hub.is_silent_at(request.method, unquote(request.url.path)):
            for kind in ("read", "write"):
                request.extensions["timeout"][kind] /= 1000

    monkeypatch.setattr(hub_client._Limits, "before", before)


def use(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, home: Path, *, token: str | None = TOKEN) -> Clock:
    """Point the client of this process at a stand-in; return the clock by which it waits between tries."""
    from huggingface_hub import close_session, constants
    from huggingface_hub.utils import disable_progress_bars

    for name in _PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    set_token(monkeypatch, token)
    hasten_silence(hub, monkeypatch)
    clock = Clock()
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    monkeypatch.setattr("huggingface_hub.file_download.time", clock)
    # The next request makes a new one, without what an earlier test set.
    close_session()
    disable_progress_bars()
    return clock


def set_token(monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    """Log in, or out with None."""
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
