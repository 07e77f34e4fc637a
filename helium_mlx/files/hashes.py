"""SHA-256 of files, as the Hub and `sha256sum` give it."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from helium_mlx.errors import CheckpointError
from helium_mlx.files.names import relative_name


def file_hashes(
    paths: Iterable[Path], *, within: Path | None = None, cancelled: threading.Event | None = None
) -> dict[str, str]:
    """Return the SHA-256 of each file, keyed by its name, or its path in the directory `within`.

    Of those read so far, once `cancelled` is set.

    Raises CheckpointError for a file that cannot be read.
    """
    hashes: dict[str, str] = {}
    for path in paths:
        try:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
                    if cancelled is not None and cancelled.is_set():
                        return hashes
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
        hashes[path.name if within is None else relative_name(path, within)] = digest.hexdigest()
    return hashes


@contextmanager
def hashing(paths: Iterable[Path], *, within: Path) -> Iterator[Callable[[], dict[str, str]]]:
    """Hash files in a thread; what is given waits for the hashes. Leaving the context ends the work."""
    cancelled = threading.Event()
    with ThreadPoolExecutor(1, "helium-mlx-hash") as thread:
        future = thread.submit(file_hashes, paths, within=within, cancelled=cancelled)
        try:
            yield future.result
        finally:
            cancelled.set()
