"""From what a user names (a directory, a Hub repository, or `demo`) to a directory on this machine."""

import re
import sys
from functools import cache
from pathlib import Path

from helium_mlx.errors import CheckpointError, UsageError, shown
from helium_mlx.files.hub_access import DEFAULT_ACCESS, HubAccess

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WITH_SUBFOLDER = re.compile(r"([\w.-]+/[\w.-]+):(.*)", re.DOTALL)
_SEGMENT = re.compile(r"(?!\.{1,2}/)[\w.+ -]{1,200}/")
_FORBIDDEN = re.compile(
    r"[\x00-\x20\x7f~^:?*\[\\]"  # blanks, control characters, and what git has other uses for
    r"|\.\.|@\{|//|/\.|\.lock(/|$)"
    r"|^[-/.]|[/.]$|^(@|HEAD)?$",
)

DEMO_NAME = "demo"
DEMO_DIRECTORY = Path(__file__).parents[1] / "demo"


def resolve(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    documents: bool = False,
    access: HubAccess = DEFAULT_ACCESS,
) -> Path:
    """Return the directory of a checkpoint, downloading it first if it is a Hub repository that is not cached.

    `subfolder` is where in the directory or repository it lies; "user/name:subfolder" says the same. `documents` asks
    for the repository's card and licence too, which a cache that other programs filled may lack. `access` is how the
    Hub is asked.

    Raises CheckpointError, one line, if there is no such directory or the Hub cannot give it, and UsageError for names
    that can be none.
    """
    name, subfolder = _parts(path_or_repo, revision, subfolder)
    directory = _local_directory(name)
    if directory is None:
        return _downloaded(name, revision, subfolder, access, documents=documents)
    if revision is not None:
        raise CheckpointError(
            f"{name} is a directory on this machine, which has no revision {revision}; leave that out"
        )
    if subfolder and not (directory / subfolder).is_dir():
        raise CheckpointError(f"{directory} has no subfolder {subfolder}; check its name, or leave it out")
    return directory / (subfolder or "")


def root_of(directory: Path, path_or_repo: str | Path, subfolder: str | None) -> Path:
    """Return the directory of the whole, for the directory that `resolve` gave for a name and a subfolder."""
    inside = Path(_parts(path_or_repo, None, subfolder)[1] or "")
    return directory.parents[len(inside.parts) - 1] if inside.parts else directory


def resolve_file(
    path_or_repo: str | Path,
    file: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    access: HubAccess = DEFAULT_ACCESS,
) -> Path:
    """Return one file of a checkpoint, which is all that is downloaded; it may be missing from a directory.

    Raises the errors of `resolve`.
    """
    name, subfolder = _parts(path_or_repo, revision, subfolder)
    directory = _local_directory(name)
    if directory is not None:
        return directory / (subfolder or "") / file
    return _downloaded(name, revision, subfolder, access, file)


def require_branch_name(name: str) -> None:
    """Raise UsageError for a name that git takes neither for a branch or tag nor for a reference such as refs/pr/3."""
    if _FORBIDDEN.search(name):
        raise UsageError(
            f"revision is {shown(name)}, which git takes for no branch; expected a name such as 4bit or q/4-bit"
        )


def require_subfolder(name: str) -> None:
    """Raise UsageError for a subfolder that is not one or more plain names with slashes between them."""
    if not re.fullmatch(rf"({_SEGMENT.pattern})+", f"{name}/"):
        raise UsageError(f"subfolder is {shown(name)}; expected the name of a folder inside, such as variants/2024")


def _parts(path_or_repo: str | Path, revision: str | None, subfolder: str | None) -> tuple[str, str | None]:
    """Return the name without its subfolder, and that; both, and the revision, can be what they are to be."""
    name = str(path_or_repo)
    found = None if name and Path(name).exists() else _WITH_SUBFOLDER.fullmatch(name)
    if found and subfolder is not None:
        raise UsageError(f"subfolder is {shown(subfolder)}, and {name} names one too; leave one of them out")
    if found:
        name, subfolder = found[1], found[2]
    if subfolder is not None:
        # As a shell completes it.
        subfolder = subfolder.removesuffix("/")
        require_subfolder(subfolder)
    if revision is not None:
        require_branch_name(revision)
    return name, subfolder


def _local_directory(name: str) -> Path | None:
    if name == DEMO_NAME:
        if Path(name).is_dir():
            _note_demo()
        return DEMO_DIRECTORY
    if name and Path(name).exists():
        return Path(name)
    if not _REPO_ID.fullmatch(name) or name.startswith((".", "/")):
        raise CheckpointError(
            f"{name or repr(name)}: no such directory, and not a Hub repository (user/name); "
            f"{DEMO_NAME!r} is the one in this package"
        )
    return None


@cache
def _note_demo() -> None:
    """Say once that the name has two meanings; the package's is taken, so that examples do what they say anywhere."""
    print(
        f"note: {DEMO_NAME!r} is the checkpoint inside the package; for the folder of that name say ./{DEMO_NAME}",
        file=sys.stderr,
        flush=True,
    )


def _downloaded(
    repo: str,
    revision: str | None,
    subfolder: str | None,
    access: HubAccess,
    file: str | None = None,
    *,
    documents: bool = False,
) -> Path:
    # What is on this machine starts without the client.
    from helium_mlx.files.hub_client import HubProblem
    from helium_mlx.files.hub_download import download, download_file

    try:
        if file is not None:
            return download_file(repo, revision, subfolder, file, access)
        return download(repo, revision, subfolder, access, documents=documents)
    except HubProblem as problem:
        raise CheckpointError(f"{problem}, or try {DEMO_NAME!r}") from None
