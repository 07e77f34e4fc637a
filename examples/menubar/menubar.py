"""A menu-bar app for macOS: continues the text on the clipboard, and puts the whole back there.

    pip install helium-mlx rumps && python menubar.py

How it becomes a signed app with Python, MLX and the model inside: `../menubar.md`. An engine owns the model's
thread, and AppKit the one for menus: a third reads, and a timer on AppKit's looks whether it is done.
"""

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

import rumps  # pyright: ignore[reportMissingImports]
from AppKit import NSPasteboard, NSPasteboardTypeString  # pyright: ignore[reportMissingImports]

from helium_mlx import EngineCompletion, EngineStream, HeliumEngine, HeliumError

MEMORY_LIMIT = 3 * 10**9  # weights and caches, in bytes: what the 2B preview takes at 4 bits and a full context
MAX_TOKENS = 120


def model_path() -> str:
    """Return the folder `model` inside the app (or beside this file), or the demo where there is none."""
    beside = Path(getattr(sys, "_MEIPASS", Path(__file__).parent)) / "model"
    return str(beside) if beside.is_dir() else "demo"


class ContinueApp(rumps.App):
    """The menu, and the one completion that runs at a time."""

    def __init__(self, engine: HeliumEngine) -> None:
        super().__init__("Helium", title="He", quit_button=None)
        self.engine = engine
        self.stream: EngineStream | None = None
        self.completion: Future[EngineCompletion] | None = None
        self.readers = ThreadPoolExecutor()
        self.prompt = ""
        self.menu = [
            rumps.MenuItem("Continue the clipboard", callback=self.begin),
            rumps.MenuItem("Stop", callback=self.stop),
            None,
            rumps.MenuItem("Quit", callback=self.quit),
        ]
        self.timer = rumps.Timer(self.look, 0.1)
        self.timer.start()

    def begin(self, _: object) -> None:
        """Start on what the clipboard holds; what ran before is dropped."""
        self.stop(None)
        self.prompt = cast("str | None", NSPasteboard.generalPasteboard().stringForType_(NSPasteboardTypeString)) or ""
        try:
            self.stream = self.engine.stream(self.prompt, max_tokens=MAX_TOKENS, temperature=0.7, top_p=0.9)
        except HeliumError as error:
            rumps.alert("Helium", str(error))
            return
        self.completion = self.readers.submit(self.stream.result)

    def stop(self, _: object) -> None:
        """Stop within a token; what there is goes to the clipboard at the next look."""
        if self.stream is not None:
            self.stream.cancel()

    def look(self, _: object) -> None:
        """Called by AppKit ten times a second: never waits for the model."""
        self.title = "He" if self.stream is None else f"He {len(self.stream.tokens)}"
        if self.completion is None or not self.completion.done():
            return
        completion, self.completion, self.stream = self.completion, None, None
        try:
            result = completion.result()
            # A text that begins a word leaves out the space before it.
            text = f"{self.prompt}{' ' if result.leading_space else ''}{result.text}"
        except HeliumError as error:
            rumps.alert("Helium", str(error))
            return
        board = NSPasteboard.generalPasteboard()
        board.clearContents()
        board.setString_forType_(text, NSPasteboardTypeString)

    def quit(self, _: object) -> None:
        """End the engine's thread, then the app."""
        self.engine.close()
        rumps.quit_application()


def main() -> int:
    """Run the app, or with `--selfcheck` prove MLX inside it."""
    if "--selfcheck" in sys.argv[1:]:
        from helium_mlx import selfcheck

        return selfcheck.main([])
    ContinueApp(HeliumEngine(model_path(), memory_limit=MEMORY_LIMIT)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
