"""A repository of the Hub as an upload finds it: where its branch is, and which files it holds."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from helium_mlx.errors import UploadError, one_line, some
from helium_mlx.files.untrusted import MAX_JSON_BYTES, FileProblem, read_json_object
from helium_mlx.model_card.record import CONVERSION_FILE, is_record
from helium_mlx.publishing.publication import LocalFile

if TYPE_CHECKING:
    from huggingface_hub import HfApi


# The Hub puts it into every repository.
GIT_ATTRIBUTES = ".gitattributes"


@dataclass(frozen=True)
class RemoteFile:
    """A file of the Hub: `sha256` is there for large ones, which LFS or Xet hold; `git_oid` names others."""

    size: int
    sha256: str | None
    git_oid: str

    def holds(self, file: LocalFile) -> bool:
        """Whether the contents are the same."""
        if self.size != file.size:
            return False
        return self.sha256 == file.sha256 if self.sha256 else self.git_oid == file.git_oid()


@dataclass(frozen=True)
class RemoteState:
    """A repository at a moment. Without one, `head` is None; without the branch that was asked for, it is main's."""

    head: str | None
    is_private: bool
    has_branch: bool
    files: dict[str, RemoteFile]


def remote_state(api: "HfApi", repo: str, revision: str | None) -> RemoteState:
    """Return what the Hub says of a repository, for a token or without. Raises the client's errors."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    has_branch = True
    try:
        try:
            info = api.model_info(repo, revision=revision)
        except RevisionNotFoundError:
            has_branch = False
            info = api.model_info(repo)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return RemoteState(None, False, False, {})
    assert info.sha is not None
    return RemoteState(info.sha, bool(info.private), has_branch, remote_files(api, repo, info.sha))


def remote_files(api: "HfApi", repo: str, revision: str) -> dict[str, RemoteFile]:
    """Return the files of a revision by path, but for the Hub's own."""
    from huggingface_hub.hf_api import RepoFile

    return {
        entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
        for entry in api.list_repo_tree(repo, recursive=True, revision=revision)
        if isinstance(entry, RepoFile) and entry.path != GIT_ATTRIBUTES
    }


def previous_record(api: "HfApi", repo: str, state: RemoteState) -> dict[str, object] | None:
    """Return the `conversion.json` of an earlier upload; None if what is there did not come from one."""
    listed = state.files.get(CONVERSION_FILE)
    if listed is None or listed.size > MAX_JSON_BYTES:
        return None
    with tempfile.TemporaryDirectory() as directory:
        file = api.hf_hub_download(repo, CONVERSION_FILE, revision=state.head, local_dir=directory)
        try:
            record = read_json_object(Path(file))
        except FileProblem:
            return None
    return record if is_record(record) else None


def pull_request_holding(api: "HfApi", repo: str, files: tuple[LocalFile, ...]) -> str | None:
    """Return the newest pull request, such as "refs/pr/3", that holds all files already; the last ten are looked at."""
    references = api.list_repo_refs(repo, include_pull_requests=True).pull_requests or []
    newest = sorted(references, key=lambda reference: int(reference.ref.rpartition("/")[2]), reverse=True)
    for reference in newest[:10]:
        remote = remote_files(api, repo, reference.target_commit)
        if not differing(files, remote):
            return reference.ref
    return None


def differing(files: tuple[LocalFile, ...], remote: dict[str, RemoteFile]) -> list[LocalFile]:
    """Return the files that the Hub does not hold, or holds otherwise."""
    return [file for file in files if file.name not in remote or not remote[file.name].holds(file)]


def require_ours(repo: str, state: RemoteState, *, is_ours: bool, overwrite: bool) -> None:
    """Raise UploadError for a repository whose files no upload of ours put there."""
    if is_ours or overwrite or not state.files:
        return
    held = one_line(some(sorted(state.files)))
    raise UploadError(
        f"{repo} holds {held}, which no upload of helium_mlx put there; choose another name, or go on with "
        "--overwrite, which replaces files of the same names and the weights, and leaves the rest"
    )
