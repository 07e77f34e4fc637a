"""The Hub's cache on this machine, in the layout of `huggingface_hub`: what it holds of a commit, and what it knows.

models--USER--NAME/refs/REVISION names a commit, snapshots/COMMIT/ has its files, which are links into blobs/, and an
empty file .no_exist/COMMIT/NAME says that the commit has no such file.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from helium_mlx.files.hub_access import DEFAULT_ACCESS

COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_PREFIX = "models--"


@dataclass(frozen=True)
class Snapshot:
    """A commit in the cache; `repository` is the directory of all its commits. Neither need be there."""

    repository: Path
    commit: str

    @property
    def root(self) -> Path:
        """The directory of the commit's files."""
        return self.repository / "snapshots" / self.commit

    @property
    def repo(self) -> str:
        """The repository's name on the Hub."""
        return self.repository.name.removeprefix(_PREFIX).replace("--", "/")

    def knows(self, name: str) -> bool:
        """Whether a file is here, or known not to be in the commit."""
        return (self.root / name).exists() or self._absence(name).exists()

    def note_absent(self, name: str) -> None:
        """Remember that the commit has no such file."""
        self._absence(name).parent.mkdir(parents=True, exist_ok=True)
        self._absence(name).touch()

    def note_revision(self, revision: str) -> None:
        """Remember that a branch or tag is at this commit."""
        if COMMIT.fullmatch(revision):
            return
        path = self.repository / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.commit)

    def _absence(self, name: str) -> Path:
        return self.repository / ".no_exist" / self.commit / name


def snapshot_of(directory: Path) -> Snapshot | None:
    """Return the commit in the Hub's cache that a directory, or a folder around it, holds; None for any other."""
    for folder in (directory, *directory.parents):
        repository = folder.parent.parent
        if folder.parent.name == "snapshots" and repository.name.startswith(_PREFIX):
            return Snapshot(repository, folder.name)
    return None


def is_cached(path: Path) -> bool:
    """Whether a path leads, links followed, to a file of a model in the cache of this machine."""
    cache, real = Path(os.path.realpath(DEFAULT_ACCESS.cache)), Path(os.path.realpath(path))
    return real.is_relative_to(cache) and real.relative_to(cache).as_posix().startswith(_PREFIX) and real.is_file()


def snapshot_at(repo: str, commit: str, cache: Path) -> Snapshot:
    """Return the place of a commit in a cache."""
    return Snapshot(cache / f"{_PREFIX}{repo.replace('/', '--')}", commit)


def cached_snapshot(repo: str, revision: str, cache: Path) -> Snapshot | None:
    """Return the commit that the cache has for a branch, tag or commit, without a look at the network."""
    commit = revision
    if not COMMIT.fullmatch(revision):
        try:
            with open(snapshot_at(repo, "", cache).repository / "refs" / revision, errors="replace") as file:
                commit = file.read(100).strip()
        except OSError:
            return None
    snapshot = snapshot_at(repo, commit, cache)
    return snapshot if COMMIT.fullmatch(commit) and snapshot.root.is_dir() else None
