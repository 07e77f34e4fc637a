"""The part of a card that says how far a conversion is from its source: measured, or how to measure it."""

import hashlib
import json
import os
import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from helium_mlx.errors import CheckpointError
from helium_mlx.file_hashes import file_hashes
from helium_mlx.json_files import MAX_JSON_BYTES, FileProblem, read_bytes, read_json_object
from helium_mlx.weight_files import new_directory, write_json

if TYPE_CHECKING:
    from helium_mlx.comparison_report import ComparisonReport, LanguageFigures

HEADING = "## Quality"

_COLUMNS = ("text", "mean KL", "99% KL", "same first token", "perplexity", "the source's", "ratio", "bits per byte")


def quality_section(comparison: "ComparisonReport | None", source: str, model: str) -> list[str]:
    """Return the lines under `HEADING`: the table of a comparison with the source, or the command that makes one."""
    if comparison is None:
        command = f"python -m helium_mlx.compare --reference {shlex.quote(source)} --candidate {shlex.quote(model)}"
        return ["Not measured. This does it; `--update-card` puts the result here:", "", "```sh", command, "```"]
    rows = {"all": comparison, **comparison.languages}
    lines = [_row(_COLUMNS), _row(["--"] * len(_COLUMNS)), *(_row(_cells(name, row)) for name, row in rows.items())]
    unit = getattr(comparison, "perplexity_unit", "token")
    explained = (
        f"Measured beside the source with `helium_mlx.compare` on {comparison.tokens:,} tokens. KL is that of the next "
        f"token's distribution from the source's, in nats; perplexity is that of a {unit}."
    )
    return [explained, "", *lines]


def update_card(directory: Path, comparison: "ComparisonReport") -> None:
    """Write a comparison with the source into the card and the record of a converted directory, in one step.

    Raises CheckpointError for a directory that was not converted here, or whose card was changed since.
    """
    directory = directory.resolve()
    try:
        record = read_json_object(directory / "conversion.json")
        card = read_bytes(directory / "README.md", MAX_JSON_BYTES).decode(errors="replace")
    except FileProblem as problem:
        raise CheckpointError(f"{directory}: a card is kept with a conversion.json, which {problem}") from None
    files = record.get("files")
    if not isinstance(files, dict) or files.get("README.md") != file_hashes([directory / "README.md"])["README.md"]:
        raise CheckpointError(f"{directory / 'README.md'} is not as conversion.json says; convert the checkpoint again")
    text = with_quality(card, quality_section(comparison, str(record.get("source")), directory.name))
    digest = hashlib.sha256(text.encode()).hexdigest()
    changed = record | {
        "files": files | {"README.md": digest},
        "comparison": json.loads(json.dumps(asdict(comparison))),
    }
    _rewrite(directory, text, changed)


def with_quality(card: str, section: list[str]) -> str:
    """Return a card whose part about quality is another; a new one comes before the one about memory, or last."""
    part = "\n".join([HEADING, "", *section, "", ""])
    if f"\n{HEADING}\n" in card:
        return re.sub(rf"^{HEADING}\n.*?(?=^## |\Z)", lambda _: part, card, flags=re.DOTALL | re.MULTILINE)
    before, heading, after = card.partition("## Memory\n")
    return f"{before}{part}{heading}{after}" if heading else f"{card.rstrip()}\n\n{part}"


def _rewrite(directory: Path, card: str, record: dict[str, object]) -> None:
    """Put card and record in place together: a new directory, of links to all other files, takes the old one's."""
    inner = next((path for path in sorted(directory.iterdir()) if path.is_dir()), None)
    if inner is not None:
        raise CheckpointError(f"{inner} is a directory, which no converted checkpoint has; move it away")
    with new_directory(directory, replace=True) as new:
        for path in directory.iterdir():
            if path.name not in ("README.md", "conversion.json"):
                _link(path, new / path.name)
        (new / "README.md").write_text(card, encoding="utf-8")
        write_json(new / "conversion.json", record)


def _link(path: Path, other: Path) -> None:
    try:
        os.link(path, other)
    except OSError:
        # Some file systems have no links.
        shutil.copy2(path, other)


def _row(cells: "tuple[str, ...] | list[str]") -> str:
    return f"| {' | '.join(cells)} |"


def _cells(name: str, figures: "LanguageFigures") -> list[str]:
    error = figures.perplexity_ratio_error
    return [
        name,
        _shown(figures.mean_kl, "{:.4f}"),
        _shown(figures.p99_kl, "{:.4f}"),
        _shown(figures.top1_agreement, "{:.1%}"),
        f"{figures.candidate_perplexity:.3f}",
        f"{figures.reference_perplexity:.3f}",
        f"{figures.perplexity_ratio:.4f}" + ("" if error is None else f" ± {error:.4f}"),
        f"{figures.candidate_bits_per_byte:.4f}",
    ]


def _shown(figure: float | None, layout: str) -> str:
    return "" if figure is None else layout.format(figure)
