"""SHA-256 of files, as the Hub and `sha256sum` give it."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from helium_mlx.errors import CheckpointError


def file_hashes(paths: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file, keyed by its name. Raises CheckpointError for one that cannot be read."""
    hashes: dict[str, str] = {}
    for path in paths:
        try:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
        hashes[path.name] = digest.hexdigest()
    return hashes
