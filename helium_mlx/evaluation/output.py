"""The folder of an evaluation: whether it can be written to, seen before work, and the results in it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helium_mlx.errors import HeliumError, UsageError
from helium_mlx.evaluation.answers import require_answers
from helium_mlx.files.atomic import replacing
from helium_mlx.json_writer import to_json

ANSWERS_FILE = "answers.jsonl"


def require_folder(output: str | Path) -> None:
    """Raise UsageError unless there is such a folder, or one can be made; none is."""
    if output == "":
        raise UsageError("output is ''; expected a folder for answers and results; leave it out to keep neither")
    if problem := _problem(Path(output)):
        raise UsageError(f"output is {str(output)!r}, but {problem}; name another folder")


def require_results(output: Path, folders: Sequence[str]) -> None:
    """Raise HeliumError unless answers, and the results of each model in its own folder, can be kept there."""
    require_answers(output / ANSWERS_FILE)
    for folder in folders:
        if problem := _problem(output / folder):
            raise HeliumError(f"{problem}, and results go there; move it away, or name another output")


def write_results(place: Path, harness: Mapping[str, object], samples: Mapping[str, list[object]]) -> None:
    """Write a result in lm-eval's form, and the questions of each task beside it."""
    place.mkdir(parents=True, exist_ok=True)
    with replacing(place / "results.json") as file:
        file.write_text(to_json(harness, indent=2) + "\n", encoding="utf-8")
    for task, rows in samples.items():
        with replacing(place / f"samples_{task}.jsonl") as file:
            file.write_text("".join(f"{to_json(plain({'row': row})['row'])}\n" for row in rows), encoding="utf-8")


def plain(values: Mapping[str, object]) -> dict[str, Any]:
    """Return a result with nothing in it but what JSON has; a function is its name."""
    from lm_eval.utils import handle_non_serializable

    def named(value: object) -> object:
        return getattr(value, "__name__", None) or handle_non_serializable(value)

    return json.loads(json.dumps(values, default=named))


def _problem(place: Path) -> str | None:
    """Return why no folder can be there, or be made there."""
    nearest = next(each for each in (place, *place.absolute().parents) if os.path.lexists(each))
    if not nearest.is_dir():
        return f"{nearest} is no folder"
    return None if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} may not be written to"
