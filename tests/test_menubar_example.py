"""`examples/menubar/menubar.py` with stand-ins for rumps and AppKit, which only a Mac has."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from waiting import wait_for

import helium_mlx

PROGRAM = Path(__file__).parents[1] / "examples/menubar/menubar.py"


class Pasteboard:
    """A clipboard with text on it."""

    text = "Once upon a time"

    @classmethod
    def generalPasteboard(cls) -> "type[Pasteboard]":
        return cls

    @classmethod
    def stringForType_(cls, kind: str) -> str:
        return cls.text

    @classmethod
    def clearContents(cls) -> None:
        cls.text = ""

    @classmethod
    def setString_forType_(cls, text: str, kind: str) -> None:
        cls.text = text


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    alerts: list[str] = []
    rumps = ModuleType("rumps")
    vars(rumps).update(
        App=type("App", (), {"__init__": lambda self, name, **options: None, "run": lambda self: None}),
        MenuItem=lambda title, callback: (title, callback),
        Timer=lambda function, seconds: SimpleNamespace(start=lambda: None),
        alert=lambda title, message: alerts.append(message),
        quit_application=lambda: None,
    )
    appkit = ModuleType("AppKit")
    vars(appkit).update(NSPasteboard=Pasteboard, NSPasteboardTypeString="text")
    monkeypatch.setitem(sys.modules, "rumps", rumps)
    monkeypatch.setitem(sys.modules, "AppKit", appkit)
    monkeypatch.setattr(Pasteboard, "text", "Once upon a time")
    spec = importlib.util.spec_from_file_location("menubar_example", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app = module.ContinueApp(helium_mlx.HeliumEngine(module.model_path(), memory_limit=module.MEMORY_LIMIT))
    yield SimpleNamespace(app=app, alerts=alerts)
    app.quit(None)


def look_until_done(app: SimpleNamespace) -> None:
    def is_done() -> bool:
        app.look(None)
        return app.completion is None

    wait_for(is_done)


def test_the_clipboard_is_continued(program: SimpleNamespace) -> None:
    program.app.begin(None)
    look_until_done(program.app)
    assert Pasteboard.text.startswith("Once upon a time ")
    assert len(Pasteboard.text) > 60
    assert program.alerts == []


def test_stopping_keeps_what_there_is(program: SimpleNamespace) -> None:
    program.app.begin(None)
    program.app.stop(None)
    look_until_done(program.app)
    assert Pasteboard.text.startswith("Once upon a time")


def test_a_prompt_that_is_too_long_is_an_alert(program: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pasteboard, "text", "a word " * 5000)
    program.app.begin(None)
    assert len(program.alerts) == 1 and "context" in program.alerts[0]
