"""A repository of the stand-in: blobs, commits, branches and pull requests, with git's and LFS's hashes."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Real repositories begin with one, which sends weights to LFS.
GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass(frozen=True)
class Blob:
    """A file's contents, in git or in LFS; of one that Xet holds, only what LFS calls it and its size are known."""

    data: bytes
    is_lfs: bool
    xet: tuple[str, int] | None = None

    @property
    def sha256(self) -> str:
        """LFS's name of it."""
        return self.xet[0] if self.xet else hashlib.sha256(self.data).hexdigest()

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self.xet[1] if self.xet else len(self.data)

    @property
    def oid(self) -> str:
        """Git's name of it, which for LFS is that of the pointer."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        stored = pointer.encode() if self.is_lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        """What a download is known by."""
        return self.sha256 if self.is_lfs else self.oid

    def entry(self, path: str) -> dict[str, object]:
        """Return what a tree listing says of it."""
        entry: dict[str, object] = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.is_lfs:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return entry


@dataclass(frozen=True)
class Commit:
    """The files of a commit, by path."""

    oid: str
    title: str
    files: dict[str, Blob]


class ConflictError(Exception):
    """The branch is not where the client thinks that it is."""


@dataclass
class Repository:
    """Branches and pull requests point to commits; `lfs` is the store of large files, committed or not.

    `shards` are what Xet's client says of the files that it sent: their SHA-256 among other things.
    """

    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)
    shards: list[bytes] = field(default_factory=list)

    @classmethod
    def of_files(cls, files: dict[str, bytes], *, oid: str = COMMIT, private: bool = False) -> "Repository":
        """Return a repository with one commit, `oid`, and the branches main and v1."""
        blobs = {path: Blob(data, is_lfs_file(path)) for path, data in files.items()}
        commit = Commit(oid, "initial commit", blobs)
        lfs = {blob.sha256: blob.data for blob in blobs.values() if blob.is_lfs}
        return cls(private, {oid: commit}, {"main": oid, "v1": oid}, {}, lfs)

    @classmethod
    def empty(cls, *, private: bool = False) -> "Repository":
        """Return a repository as the Hub makes them."""
        commit = Commit(
            hashlib.sha1(b"empty").hexdigest(), "initial commit", {".gitattributes": Blob(GIT_ATTRIBUTES, False)}
        )
        return cls(private, {commit.oid: commit}, {"main": commit.oid})

    def find(self, revision: str) -> Commit | None:
        """Return the commit of a branch, pull request or commit id."""
        oid = self.branches.get(revision) or self.pull_requests.get(revision) or revision
        return self.commits.get(oid)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return a revision's files, but for `.gitattributes`."""
        commit = self.find(revision)
        assert commit is not None
        return {path: blob.data for path, blob in commit.files.items() if path != ".gitattributes"}

    def commit(self, revision: str, lines: Sequence[Mapping[str, object]], *, create_pr: bool) -> tuple[str, str]:
        """Apply the operations of a commit request; return the commit's id, and the reference that points to it.

        Raises ConflictError where `revision` is not at the parent that the client names.
        """
        parent = self.find(revision)
        assert parent is not None
        header = next(cast("dict[str, object]", line["value"]) for line in lines if line["key"] == "header")
        if header.get("parentCommit", parent.oid) != parent.oid and not create_pr:
            raise ConflictError
        files = dict(parent.files)
        for line in lines:
            self._apply(files, str(line["key"]), cast("dict[str, object]", line["value"]))
        listing = json.dumps(
            [parent.oid, len(self.commits), *((path, blob.oid) for path, blob in sorted(files.items()))]
        )
        commit = Commit(hashlib.sha1(listing.encode()).hexdigest(), str(header["summary"]), files)
        self.commits[commit.oid] = commit
        reference = f"refs/pr/{len(self.pull_requests) + 1}" if create_pr else revision
        references = self.pull_requests if reference.startswith("refs/pr/") else self.branches
        references[reference] = commit.oid
        return commit.oid, reference

    def _apply(self, files: dict[str, Blob], key: str, value: dict[str, object]) -> None:
        path = str(value.get("path"))
        if key == "file":
            files[path] = Blob(base64.b64decode(str(value["content"])), is_lfs=False)
        elif key == "lfsFile":
            files[path] = self._large(str(value["oid"]), int(str(value["size"])))
        elif key == "deletedFile":
            del files[path]

    def _large(self, oid: str, size: int) -> Blob:
        if oid in self.lfs:
            return Blob(self.lfs[oid], is_lfs=True)
        assert any(_in_words(oid) in shard for shard in self.shards), "committed, but never sent"
        return Blob(b"", is_lfs=True, xet=(oid, size))


def _in_words(digest: str) -> bytes:
    """Return a hash as Xet writes it: four numbers of 64 bits, the lowest byte first."""
    return b"".join(bytes.fromhex(digest[i : i + 16])[::-1] for i in range(0, 64, 16))


def is_lfs_file(path: str) -> bool:
    """Whether the stand-in keeps a file in LFS, as `.gitattributes` says."""
    return path.endswith(".safetensors")
