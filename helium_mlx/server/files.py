"""The files of the page, read once from the package; nothing that a request names reaches the disk."""

from collections.abc import Mapping
from pathlib import Path

from helium_mlx.server.http import Answer

DIRECTORY = Path(__file__).parent / "page"

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}

# The page runs its own scripts, talks to its own server, and stands in no other page.
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = (
    ("content-security-policy", _POLICY),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-cache"),
)


def page_files() -> Mapping[str, Answer]:
    """Return the answer to each path of the page."""
    answers = {
        f"/page/{path.name}": Answer(200, path.read_bytes(), _TYPES[path.suffix], _HEADERS)
        for path in sorted(DIRECTORY.iterdir())
        if path.suffix in _TYPES
    }
    index = answers.get("/page/index.html")
    return answers if index is None else {"/": index, **answers}
