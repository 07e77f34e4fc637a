"""JSON as every program reads it, for standard output and for files.

Python's own writer puts out NaN and Infinity, which are not JSON, and fails to encode half a character ("\\ud800"),
which a name that is not UTF-8 becomes, or a stranger's file may hold.
"""

import json
import math
from typing import cast


def to_json(value: object, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """Return a value as JSON: null for numbers that are not finite, escapes for what UTF-8 cannot hold."""
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in cast("dict[object, object]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in cast("list[object]", value)]
    return value
