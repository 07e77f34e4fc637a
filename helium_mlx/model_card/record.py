"""The names that a converted directory's record and card have, and how the record is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

CONVERSION_FILE = "conversion.json"
CARD_FILE = "README.md"


def unconverted(directory: Path) -> str | None:
    """Return what to say of a directory that the converter did not make; None if there is a record that it did."""
    if (directory / CONVERSION_FILE).exists():
        return None
    return (
        f"{directory} has no {CONVERSION_FILE}, so that `helium-mlx convert` did not make it; convert it, and name "
        "what that writes"
    )


def is_record(record: Mapping[str, object]) -> bool:
    """Whether a `conversion.json` is one of this converter's."""
    versions = record.get("versions")
    return isinstance(versions, dict) and "helium_mlx" in versions and isinstance(record.get("files"), dict)


def recorded_hashes(record: Mapping[str, object]) -> dict[str, object]:
    """Return the SHA-256 of the files that a record names; none if it names none."""
    files = record.get("files")
    return cast("dict[str, object]", files) if isinstance(files, dict) else {}
