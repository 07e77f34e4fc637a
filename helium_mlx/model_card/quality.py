"""The part of a card that says how far a conversion is from its source: measured, or how to measure it."""

import hashlib
import os
import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

from helium_mlx.comparison.figures import LanguageFigures
from helium_mlx.comparison.report import ComparisonReport
from helium_mlx.comparison.tables import layer_table
from helium_mlx.errors import CheckpointError
from helium_mlx.files.atomic import new_directory, write_json
from helium_mlx.files.hashes import file_hashes
from helium_mlx.files.hub import DEMO_NAME
from helium_mlx.files.names import CHAT_TEMPLATES_DIRECTORY
from helium_mlx.files.untrusted import MAX_JSON_BYTES, FileProblem, read_bytes, read_json_object
from helium_mlx.model_card.record import CARD_FILE, CONVERSION_FILE, recorded_hashes, unconverted

HEADING = "## Quality"


def how_to_measure(source: str, model: str) -> list[str]:
    """Return the lines under `HEADING` of a card without a measurement."""
    command = f"python -m helium_mlx.compare --reference {shlex.quote(source)} --candidate {shlex.quote(model)}"
    return ["Not measured. This does it; `--update-card` puts the result here:", "", "```sh", command, "```"]


def measured(comparison: ComparisonReport, reference: str) -> list[str]:
    """Return the lines under `HEADING` that say what a comparison with `reference` found."""
    layers = ["", *layer_table(comparison.layers).markdown()] if comparison.layers else []
    return [
        f"`helium_mlx.compare` beside `{reference}` (A; this model is B), on {comparison.extent}, computed "
        f"in {comparison.reference.dtype}. KL(A || B) is in nats a token.",
        "",
        *comparison.table(wide=True).markdown(),
        *layers,
    ]


def require_card(candidate: str | Path) -> None:
    """Raise CheckpointError, before any work, for a side of a comparison whose card `update_card` would refuse."""
    if str(candidate) == DEMO_NAME or not Path(candidate).is_dir():
        raise CheckpointError(
            f"{candidate} is no directory of yours, and --update-card needs one that `helium-mlx convert` made; drop it"
        )
    card_and_record(Path(candidate))


def update_card(directory: Path, comparison: ComparisonReport, *, reference: str | None = None) -> None:
    """Write a comparison with the source into the card and the record of a converted directory, in one step.

    `reference` is what to call the source; None takes the comparison's name of it, without a path.
    Raises CheckpointError for a directory that was not converted here, or whose card was changed since.
    """
    directory = directory.resolve()
    card, record = card_and_record(directory)
    text = with_quality(card, measured(comparison, reference or _name(comparison.reference.name)))
    files = recorded_hashes(record) | {CARD_FILE: hashlib.sha256(text.encode()).hexdigest()}
    rewrite_card(directory, text, record | {"files": files, "comparison": _figures(comparison)})


def with_quality(card: str, section: list[str]) -> str:
    """Return a card whose part about quality is another; a new one comes before the one about memory, or last."""
    return with_section(card, HEADING, section)


def with_section(card: str, heading: str, section: list[str]) -> str:
    """Return a card whose part under a heading is another; a new one comes before the one about memory, or last."""
    part = "\n".join([heading, "", *section, "", ""])
    if f"\n{heading}\n" in card:
        return re.sub(rf"^{heading}\n.*?(?=^## |\Z)", lambda _: part, card, flags=re.DOTALL | re.MULTILINE)
    before, memory, after = card.partition("## Memory\n")
    return f"{before}{part}{memory}{after}" if memory else f"{card.rstrip()}\n\n{part}"


def card_and_record(directory: Path) -> tuple[str, dict[str, object]]:
    """Return the card and the record of a converted directory. Raises CheckpointError unless they belong together."""
    if problem := unconverted(directory):
        raise CheckpointError(problem)
    inner = next((path for path in _directories(directory) if path not in _folders(directory)), None)
    if inner is not None:
        raise CheckpointError(f"{inner} is a directory, which no converted checkpoint has; move it away")
    if not (directory / CARD_FILE).exists():
        raise CheckpointError(f"{directory / CARD_FILE} is missing; convert the checkpoint again")
    try:
        record = read_json_object(directory / CONVERSION_FILE)
        card = read_bytes(directory / CARD_FILE, MAX_JSON_BYTES).decode(errors="replace")
    except FileProblem as problem:
        raise CheckpointError(f"{directory} has no card to write into: {problem}") from None
    if recorded_hashes(record).get(CARD_FILE) != file_hashes([directory / CARD_FILE])[CARD_FILE]:
        raise CheckpointError(f"{directory / CARD_FILE} is not as {CONVERSION_FILE} says; convert the checkpoint again")
    return card, record


def _directories(directory: Path) -> list[Path]:
    """Return the directories in a checkpoint, and those in its folder of chat templates."""
    folders = _folders(directory)
    return sorted(path for folder in (directory, *folders) for path in folder.iterdir() if path.is_dir())


def _folders(directory: Path) -> list[Path]:
    """Return the folder that a checkpoint may have, which is its own and no link, where it is there."""
    templates = directory / CHAT_TEMPLATES_DIRECTORY
    return [templates] if templates.is_dir() and not templates.is_symlink() else []


def rewrite_card(directory: Path, card: str, record: dict[str, object]) -> None:
    """Put card and record in place together: a new directory, of links to all other files, takes the old one's."""
    with new_directory(directory, replace=True) as new:
        folders = _folders(directory)
        for folder in (directory, *folders):
            (new / folder.relative_to(directory)).mkdir(exist_ok=True)
            for path in folder.iterdir():
                if path not in (*folders, directory / CARD_FILE, directory / CONVERSION_FILE):
                    _link(path, new / path.relative_to(directory))
        (new / CARD_FILE).write_text(card, encoding="utf-8")
        write_json(new / CONVERSION_FILE, record)


def _link(path: Path, other: Path) -> None:
    try:
        os.link(path, other, follow_symlinks=False)
    except OSError:
        # Some file systems have no links.
        shutil.copy2(path, other, follow_symlinks=False)


def _figures(comparison: ComparisonReport) -> dict[str, object]:
    """Return what the record keeps; names are left out, which may be paths of this machine."""
    rows = {"all": comparison, **comparison.languages}
    names = LanguageFigures.__dataclass_fields__
    figures = {name: {key: value for key, value in asdict(row).items() if key in names} for name, row in rows.items()}
    return {
        "text": comparison.text,
        "texts": [asdict(text) for text in comparison.texts],
        "window": comparison.window,
        "windows": comparison.windows,
        "figures": figures,
    }


def _name(source: str) -> str:
    """Return a repository's name as it is, and of a path the last part."""
    is_path = source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).exists()
    return Path(source).name if is_path else source
