"""How long the page of `helium-mlx serve` takes for a key in a text of 20,000 words, in Chromium.

    pip install '.[serve,page]'
    python examples/page_keystrokes.py

Times are the browser's own, from a key to the end of its handlers, in milliseconds.
"""

import argparse
import shutil
import statistics
import subprocess
import sys

from playwright.sync_api import expect, sync_playwright

WORDS = " ".join(["Es war einmal ein kleiner Drache, der auf einem Berg wohnte und"] * 12)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description="Time keys in the page, with a text of 20,000 words.")
    parser.add_argument("--paragraphs", type=int, default=140, help="of 145 words each (default: %(default)s)")
    parser.add_argument("--keys", type=int, default=60, help="keys to press (default: %(default)s)")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser's program")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print and return an exit status."""
    options = build_parser().parse_args(argv)
    command = [sys.executable, "-m", "helium_mlx", "serve", "--model", "demo", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        address = server.stderr.readline().split()[2]
        times = _times(address, options)
    finally:
        server.terminate()
        server.wait()
    times.sort()
    print(f"{options.keys} keys: median {statistics.median(times):.1f} ms, the slowest {times[-1]:.1f} ms")
    return 0


def _times(address: str, options: argparse.Namespace) -> list[float]:
    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=options.chromium, args=arguments)
        page = browser.new_page()
        page.goto(address)
        expect(page.locator("html[data-ready]")).to_be_attached()
        page.locator("#suggest").uncheck()
        page.locator("#text").evaluate(
            "(area, [words, count]) => {"
            " area.value = Array(count).fill(0).map((_, i) => i + ' ' + words).join('\\n');"
            " area.dispatchEvent(new Event('input')); }",
            [WORDS, options.paragraphs],
        )
        # From before the page's own handlers to after them, layout included.
        page.evaluate(
            "() => { window.times = []; let begun = 0; const area = document.getElementById('text');"
            " addEventListener('keydown', () => { begun = performance.now(); }, true);"
            " area.addEventListener('input', () => { area.getBoundingClientRect();"
            " window.times.push(performance.now() - begun); }); }"
        )
        page.locator("#text").focus()
        page.keyboard.press("Control+End")
        for number in range(options.keys):
            page.keyboard.press("abc e"[number % 5])
        times = page.evaluate("window.times")
        browser.close()
    return times


if __name__ == "__main__":
    sys.exit(main())
