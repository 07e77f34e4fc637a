"""Files and directories that are there whole or not at all: written beside their place, then renamed.

Two directories are swapped in one step where the system can: whoever looks, or is killed, meets one or the other.
"""

import fcntl
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from helium_mlx.errors import CheckpointError
from helium_mlx.files.names import INDEX_FILE
from helium_mlx.json_writer import to_json
from helium_mlx.option_values import ErrorOf

# <fcntl.h> and <linux/fs.h>; <sys/stdio.h> on macOS.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_RENAME_SWAP = 2


def exchange(first: Path, second: Path) -> bool:
    """Swap what two names of one file system stand for; return False, with nothing done, where that is impossible."""
    # Imported here, as shutil is below: a model is loaded without them.
    import ctypes

    names = os.fsencode(first), os.fsencode(second)
    libc = ctypes.CDLL(None)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        return libc.renamex_np(*names, _RENAME_SWAP) == 0
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        return libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0
    return False


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; the file takes the place of `path` if all goes well.

    For what a user typed: a new file is for its owner alone, and one that was there keeps its mode. What killed runs
    left beside it is removed.
    """
    # What a link names is replaced, not the link.
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}.partial")
    try:
        if target.is_dir():
            raise CheckpointError(f"{path}: is a directory; name a file")
        with ExitStack() as stack:
            with _locked(target.parent, wait=True):
                _reclaim_files(target)
                mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o600
                os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                stack.enter_context(_locked(temporary, wait=False))
            yield temporary
            with temporary.open("rb") as file:
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            os.replace(temporary, target)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Raise CheckpointError if a new file could not be put there, before an hour's work is."""
    directory = Path(os.path.realpath(path)).parent
    if not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
        reason = "may not be written to" if directory.is_dir() else "is not a directory"
        raise CheckpointError(f"{path}: cannot be written, since {directory} {reason}; name another place")


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write a JSON file as people like to read it."""
    path.write_text(to_json(values, indent=2) + "\n", encoding="utf-8")


# Says what of a directory is not ours to replace, such as "holds x, which ..."; None if all of it is.
Foreign = Callable[[Path], str | None]


def require_free(
    destination: Path, *, replace: bool, foreign: Foreign | None = None, error: ErrorOf = CheckpointError
) -> None:
    """Raise `error` unless a directory can be made there or, with `replace` and nothing `foreign` in it, replaced."""
    if not os.path.lexists(destination):
        return
    if destination.is_symlink() or not destination.is_dir():
        raise error(f"{destination} is there already and not a directory; choose another name")
    if not replace:
        raise error(f"{destination} is there already; choose another name, or replace it with overwrite=True")
    if foreign is not None and (problem := foreign(destination)):
        raise error(
            f"{destination} {problem}, so overwrite=True leaves it alone; choose another name, or move that away"
        )


@contextmanager
def new_directory(
    destination: Path, *, replace: bool, foreign: Foreign | None = None, error: ErrorOf = CheckpointError
) -> Iterator[Path]:
    """Give a directory to write into; it becomes `destination` if all goes well, and is removed if not.

    With `replace`, it takes the place of a directory that is there already, at the end and in one step where the
    system can. What earlier runs left that were killed is undone first (see `_reclaim`). Raises CheckpointError for a
    destination that cannot be written, and `error` where `require_free` does, at the start or at the end.
    """
    if destination.name in ("", "..") or "\0" in destination.name:
        raise CheckpointError(f"{str(destination)!r} is not a name for a new directory; choose another one")
    with _working_directory(destination) as directory:
        require_free(destination, replace=replace, foreign=foreign, error=error)
        yield directory
        _flush(directory)
        with _locked(destination.parent, wait=True):
            # Again: somebody may have put something there meanwhile.
            require_free(destination, replace=replace, foreign=foreign, error=error)
            if destination.exists():
                _exchange(directory, destination)
            else:
                directory.rename(destination)
        _flush_directory(destination.parent)


@contextmanager
def files_into(destination: Path) -> Iterator[Path]:
    """Give a directory to write into; its files move to `destination`, over what has their names, if all goes well.

    Weight files that were there and are not written anew are removed: they would be read as part of the checkpoint.
    """
    destination = destination.resolve()
    with _working_directory(destination) as directory:
        yield directory
        _flush(directory)
        if not destination.exists():
            directory.rename(destination)
            return
        written = {path.name for path in directory.iterdir()}
        for name in sorted(written):
            os.replace(directory / name, destination / name)
        for path in [*destination.glob("model*.safetensors"), destination / INDEX_FILE]:
            if path.name not in written:
                path.unlink(missing_ok=True)


@contextmanager
def _working_directory(destination: Path) -> Iterator[Path]:
    """Give a new hidden directory beside `destination`, locked while this process lives; remove what is left of it."""
    # Not mkdtemp: its directories are for their owner alone, and a checkpoint follows the user's umask.
    directory = destination.parent / f".{destination.name}.{os.urandom(4).hex()}.partial"
    new_parents = [parent for parent in destination.parents if not os.path.lexists(parent)]
    try:
        with _named_errors(destination, directory), ExitStack() as stack:
            with suppress(FileExistsError):
                destination.parent.mkdir(parents=True)
            with _locked(destination.parent, wait=True) as is_locked:
                if is_locked:
                    _reclaim(destination)
                directory.mkdir()
                stack.enter_context(_locked(directory, wait=False))
            yield directory
    finally:
        _remove(directory)
        for parent in new_parents:
            # Refused if there is anything in it.
            with suppress(OSError):
                parent.rmdir()


def _reclaim(destination: Path) -> None:
    """Undo what killed runs left beside `destination`: put an old output back, remove everything else.

    Called with the parent locked. What a live process works on is locked, too, and left alone.
    """
    # What cannot be listed or renamed is another user's, and no reason to stop.
    with suppress(OSError):
        for path in filter(Path.is_dir, _leftovers(destination)):
            with _locked(path, wait=False) as is_dead:
                if is_dead and path.suffix == ".replaced":
                    _restore(path, destination)
                elif is_dead:
                    _remove(path)


def _reclaim_files(target: Path) -> None:
    """Remove what killed runs left beside a file; as `_reclaim`."""
    with suppress(OSError):
        for path in filter(Path.is_file, _leftovers(target)):
            with _locked(path, wait=False) as is_dead:
                if is_dead:
                    path.unlink()


def _leftovers(target: Path) -> list[Path]:
    """Return what stands beside an output under the names that are given to one in the making."""
    leftover = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.(partial|replaced)")
    found = [path for path in target.parent.iterdir() if leftover.fullmatch(path.name)]
    return sorted(path for path in found if not path.is_symlink())


def _exchange(directory: Path, destination: Path) -> None:
    """Swap two directories: at once where the system can, else by way of a third name, from which `_reclaim` helps."""
    if exchange(directory, destination):
        return
    replaced = directory.with_suffix(".replaced")
    try:
        destination.rename(replaced)
        directory.rename(destination)
        replaced.rename(directory)
    except BaseException:
        if replaced.exists():
            _restore(replaced, destination)
        raise


def _restore(replaced: Path, destination: Path) -> None:
    """Put a replaced directory back; remove it if `destination` is there, which is then the new one."""
    if os.path.lexists(destination):
        # Under another name, so that one half removed is never put back.
        _remove(replaced.rename(replaced.with_suffix(".partial")))
    else:
        replaced.rename(destination)


def _remove(directory: Path) -> None:
    import shutil

    try:
        shutil.rmtree(directory, ignore_errors=True)
    except BaseException:
        # Ctrl-C, of which most come while there is something to wait for, such as this.
        shutil.rmtree(directory, ignore_errors=True)
        raise


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock on a file or directory, which ends with the process at the latest; give whether it was to be had.

    It is not while another process has it and `wait` is not said, or on a file system without locks.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        yield False
        return
    try:
        yield _lock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except OSError:
        return False
    return True


def _flush(directory: Path) -> None:
    """Bring a directory's files to the disk, so that its new name cannot outlive a power cut that they do not."""
    for path in directory.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    _flush_directory(directory)


def _flush_directory(directory: Path) -> None:
    # Some file systems do that for files only, and a parent need not be readable.
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _named_errors(destination: Path, directory: Path) -> Iterator[None]:
    """Raise CheckpointError for an OSError, which names `destination` unless it is about another file."""
    try:
        yield
    except OSError as error:
        path = error.filename
        if isinstance(path, str) and not Path(path).is_relative_to(directory):
            raise CheckpointError(f"{path}: {error.strerror or error}") from None
        raise CheckpointError(f"{destination}: cannot be written ({error.strerror or error})") from None
