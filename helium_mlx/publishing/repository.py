"""A repository of the Hub as an upload finds it: where its branch is, and which files it holds."""

import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from helium_mlx.errors import UploadError, shown, some
from helium_mlx.files.hub_cache import COMMIT
from helium_mlx.files.hub_client import hub_problems, legible
from helium_mlx.files.untrusted import MAX_JSON_BYTES, FileProblem, read_json_object
from helium_mlx.model_card.record import CARD_FILE, CONVERSION_FILE, is_record
from helium_mlx.publishing.publication import LocalFile

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

# The Hub puts it into every repository.
GIT_ATTRIBUTES = ".gitattributes"
_MAX_ENTRIES = 200_000


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
    """Return what the Hub says of a repository, for a token or without. Raises HubProblem."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    with hub_problems(repo, writing=True):
        try:
            info, has_branch = api.model_info(repo, revision=revision), True
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return RemoteState(None, False, False, {})
        except RevisionNotFoundError:
            info, has_branch = api.model_info(repo), False
        head = _commit(info.sha)
    return RemoteState(head, bool(info.private), has_branch, remote_files(api, repo, head))


def remote_head(api: "HfApi", repo: str, revision: str | None) -> str:
    """Return the commit that a branch or pull request is at. Raises HubProblem."""
    with hub_problems(repo, writing=True):
        return _commit(api.model_info(repo, revision=revision).sha)


def remote_files(api: "HfApi", repo: str, revision: str) -> dict[str, RemoteFile]:
    """Return the files of a revision by path, but for the Hub's own. Raises HubProblem."""
    from huggingface_hub.hf_api import RepoFile

    with hub_problems(repo, writing=True):
        # Pages follow each other for as long as the Hub names another one.
        entries = list(islice(api.list_repo_tree(repo, recursive=True, revision=revision), _MAX_ENTRIES + 1))
        if len(entries) > _MAX_ENTRIES:
            raise ValueError(f"more than {_MAX_ENTRIES} files")
        files = [entry for entry in entries if isinstance(entry, RepoFile) and entry.path != GIT_ATTRIBUTES]
        return {file.path: _remote_file(file) for file in files}


def _remote_file(file: "RepoFile") -> RemoteFile:
    """Return a listed file. Raises ValueError for values that no Hub gives."""
    sha256 = file.lfs.sha256 if file.lfs else None
    if not isinstance(file.path, str) or not isinstance(file.size, int) or not isinstance(sha256 or "", str):
        raise ValueError(f"a file is listed as {shown((file.path, file.size, sha256))}")
    return RemoteFile(file.size, sha256, str(file.blob_id))


def _commit(value: object) -> str:
    if not isinstance(value, str) or not COMMIT.fullmatch(value):
        raise ValueError(f"the commit is {shown(value)}")
    return value


def previous_record(api: "HfApi", repo: str, state: RemoteState) -> dict[str, object] | None:
    """Return the `conversion.json` of an earlier upload; None if what is there did not come from one."""
    listed = state.files.get(CONVERSION_FILE)
    if listed is None or listed.size > MAX_JSON_BYTES:
        return None
    with tempfile.TemporaryDirectory() as directory:
        with hub_problems(repo, writing=True):
            file = api.hf_hub_download(repo, CONVERSION_FILE, revision=state.head, local_dir=directory)
        try:
            record = read_json_object(Path(file))
        except FileProblem:
            return None
    return record if is_record(record) else None


def pull_request_holding(api: "HfApi", repo: str, files: tuple[LocalFile, ...]) -> tuple[str, str] | None:
    """Return the newest pull request, such as "refs/pr/3", and its commit if it holds all files already.

    It does where the answer to an upload got lost; older ones are other people's, or closed. Raises HubProblem.
    """
    with hub_problems(repo, writing=True):
        references = api.list_repo_refs(repo, include_pull_requests=True).pull_requests or []
        numbered = {int(reference.ref.rpartition("/")[2]): reference for reference in references}
        if not numbered:
            return None
        newest = numbered[max(numbered)]
        commit = _commit(newest.target_commit)
    return None if differing(files, remote_files(api, repo, commit)) else (newest.ref, commit)


def card_warnings(repo: str, card: str) -> tuple[str, ...]:
    """Ask the Hub what it thinks of a card's metadata, without which it takes no commit.

    Raises UploadError for a card that it refuses, and HubProblem.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    with hub_problems(repo, writing=True):
        answer = get_session().post(
            f"{constants.ENDPOINT}/api/validate-yaml",
            json={"content": card, "repoType": "model"},
            headers=build_hf_headers(library_name="helium_mlx"),
        )
        if answer.status_code != 400:
            hf_raise_for_status(answer)
        said = answer.json()
        errors, warnings = _messages(said.get("errors")), _messages(said.get("warnings"))
    if errors or answer.status_code == 400:
        reason = legible(some(errors) or str(said.get("error", "")) or "without a reason")
        raise UploadError(
            f"{repo}: the Hub refuses the metadata of {CARD_FILE} ({reason}), and nothing was sent; put right what the "
            "source's card says, and convert it again"
        )
    return tuple(f"the Hub says of {CARD_FILE}: {message}" for message in warnings[:9])


def _messages(values: object) -> list[str]:
    listed = values if isinstance(values, list) else []
    return [legible(str(value.get("message"))) for value in listed if isinstance(value, dict)]


def differing(files: tuple[LocalFile, ...], remote: dict[str, RemoteFile]) -> list[LocalFile]:
    """Return the files that the Hub does not hold, or holds otherwise."""
    return [file for file in files if file.name not in remote or not remote[file.name].holds(file)]


def require_replaceable(repo: str, state: RemoteState, *, is_uploaded: bool, overwrite: bool) -> None:
    """Raise UploadError for a repository whose files no upload of helium_mlx put there."""
    if is_uploaded or overwrite or not state.files:
        return
    held = legible(some(sorted(state.files)), 500)
    raise UploadError(
        f"{repo} holds {held}, which no upload of helium_mlx put there; choose another name, or say overwrite=True, "
        "which replaces files of the same names and the weights, and leaves the rest"
    )
