"""`upload`: a converted directory onto the Hub, in one commit, and read back from there.

One commit, so that nobody ever downloads half of a checkpoint (`huggingface_hub.upload_large_folder` makes many).
Large files are sent one after the other before it; what has arrived stays there, so that an upload that was cut off
resumes with the next file, or with Xet the next piece of a file.
"""

import re
import shlex
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from helium_mlx.errors import UploadError, UsageError, shown
from helium_mlx.files.hub import require_branch_name
from helium_mlx.files.hub_cache import COMMIT
from helium_mlx.files.hub_client import HubProblem, hub_problems
from helium_mlx.files.hub_push import hub_api
from helium_mlx.model_card.record import CARD_FILE, recorded_hashes
from helium_mlx.option_values import OnProgress
from helium_mlx.publishing.progress import addition_of, told_by_xet, without_bars
from helium_mlx.publishing.publication import LocalFile, Publication, is_publishable, publication
from helium_mlx.publishing.repository import (
    RemoteState,
    card_warnings,
    differing,
    previous_record,
    pull_request_holding,
    remote_files,
    remote_head,
    remote_state,
    require_replaceable,
)
from helium_mlx.table import Table, short_repr
from helium_mlx.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi


_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = re.compile(r"model.*\.safetensors(\.index\.json)?")

# In a notebook.
_MOST_ROWS = 20


@dataclass(frozen=True)
class UploadedFile:
    """A file of an upload; `is_sent` is false where the Hub has it already."""

    name: str
    size: int
    sha256: str
    is_sent: bool


@dataclass(frozen=True)
class UploadReport:
    """What an upload did, or with `dry_run` would do.

    `commit` holds all files, and is None in a dry run; `pull_request` is its reference where one was asked for.
    `sent_bytes` are those of the files that differ from the Hub's; fewer cross the network where it has their contents.
    `removed` are files of an earlier upload that are not part of this one, `left_out` what lies beside the checkpoint.
    `unasked` is why the Hub did not answer a dry run, which then takes the repository for an empty one.
    """

    repo: str
    url: str
    revision: str
    commit: str | None
    pull_request: str | None
    is_new: bool
    files: tuple[UploadedFile, ...]
    removed: tuple[str, ...]
    left_out: tuple[str, ...]
    sent_bytes: int
    dry_run: bool
    warnings: tuple[str, ...]
    is_private: bool = False
    unasked: str | None = None

    def __repr__(self) -> str:
        return short_repr(
            self,
            repo=self.repo,
            revision=self.revision,
            files=len(self.files),
            sent_bytes=self.sent_bytes,
            dry_run=self.dry_run,
        )

    def _repr_html_(self) -> str:
        send, remove = ("to send", "to remove") if self.dry_run else ("sent", "removed")
        rows = [[file.name, f"{file.size:,}", send if file.is_sent else "same"] for file in self.files]
        rows += [[name, "", remove] for name in self.removed]
        rest = len(rows) - _MOST_ROWS
        rows = [*rows[:_MOST_ROWS], *([[f"and {rest} more", "", ""]] if rest > 0 else [])]
        caption = f"{self.url}, {self.pull_request or self.revision}{': nothing was sent' * self.dry_run}"
        return Table("file", [("size", "bytes"), ("change", "")], rows).html(caption)

    @property
    def is_unchanged(self) -> bool:
        """Whether the Hub has all of it already, so that nothing is sent."""
        return not self.sent_bytes and not self.removed


def upload(
    path: str | Path,
    repo: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> UploadReport:
    """Publish the converted directory `path` as the Hub's repository `repo`, made if need be, `private` or not.

    Sent is what differs from what is there, in one commit to the branch `revision` (main; made if need be) or, with
    `create_pr`, to a new pull request. Files of an earlier upload that are not part of this one are removed in it. A
    repository that holds anything else is left alone without `overwrite`. Then names and hashes are read back.
    `dry_run` only looks, and needs no token for public repositories, nor an answer of the Hub. `on_progress(done,
    total)` counts bytes. The token is that of `hf auth login` or `HF_TOKEN`.

    Raises UploadError or UsageError, one line, and is safe to be called again then.
    """
    _require_names(repo, revision)
    contents = publication(Path(path), repo)
    try:
        return _Upload(contents, repo, revision, private, create_pr, overwrite, on_progress).run(dry_run=dry_run)
    except HubProblem as problem:
        raise UploadError(str(problem)) from None


class _Sent:
    """Counts the bytes of an upload: those of files that have arrived, and of the one on its way."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self.total = total
        self.arrived = 0
        self._on_progress = on_progress

    def on_bytes(self, done: int) -> None:
        """Tell of `done` bytes of the next file."""
        if self._on_progress:
            self._on_progress(min(self.arrived + done, self.total), self.total)

    def have_arrived(self, size: int) -> None:
        """Count files of so many bytes."""
        self.arrived += size
        self.on_bytes(0)


def require_ready(repo: str, *, verify: bool) -> None:
    """Raise HeliumError for what would only fail after a conversion: a repository's name, no token, no verification."""
    _require_names(repo, None)
    if not verify:
        raise UsageError("what nobody has checked is not published; drop verify=False, or upload_repo")
    hub_api(needs_token=True)


def publish(directory: Path, repo: str, *, on_progress: OnProgress | None = None) -> UploadReport:
    """Upload what has just been converted. The UploadError says how to continue, which needs no second conversion."""
    try:
        return upload(directory, repo, on_progress=on_progress)
    except UploadError as error:
        again = f"helium-mlx upload --path {shlex.quote(str(directory))} --repo {repo}"
        raise UploadError(f"{error} ({directory} is kept; continue with: {again})") from None


def _require_names(repo: str, revision: str | None) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if not _REPO_ID.fullmatch(repo):
            raise HFValidationError
        validate_repo_id(repo)
    except HFValidationError:
        raise UsageError(
            f"{repo!r} is not a name of a repository; expected user/name, of letters, digits, -, _ and ."
        ) from None
    if revision is None:
        return
    require_branch_name(revision)
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UsageError(f"revision is the commit {revision}, which cannot change; name a branch, or leave it out")


@dataclass(frozen=True)
class _Upload:
    """One call of `upload`, whose arguments these are."""

    contents: Publication
    repo: str
    revision: str | None
    private: bool
    create_pr: bool
    overwrite: bool
    on_progress: OnProgress | None

    @property
    def branch(self) -> str:
        return self.revision or "main"

    def run(self, *, dry_run: bool) -> UploadReport:
        api = hub_api(needs_token=not dry_run)
        try:
            state = remote_state(api, self.repo, self.revision)
            record = previous_record(api, self.repo, state)
        except HubProblem as problem:
            if not dry_run or not problem.is_unanswered:
                raise
            nothing = RemoteState(None, False, False, {})
            return replace(self._report(api, nothing, [*self.contents.files], []), unasked=str(problem))
        self._require_acceptable(state)
        require_replaceable(self.repo, state, is_uploaded=record is not None, overwrite=self.overwrite)
        changed, stale = differing(self.contents.files, state.files), self._stale(state, record)
        if dry_run:
            return self._report(api, state, changed, stale)
        if not changed and not stale and (state.has_branch or self.create_pr):
            return self._report(api, state, changed, stale, commit=state.head)
        holder = pull_request_holding(api, self.repo, self.contents.files) if self.create_pr and state.head else None
        if holder:
            return self._report(api, state, [], [], commit=holder[1], pull_request=holder[0])
        said = card_warnings(self.repo, self._card()) if any(file.name == CARD_FILE for file in changed) else ()
        commit, pull_request = self._send(api, state, changed, stale)
        self._require_arrived(api, commit, stale)
        report = self._report(api, state, changed, stale, commit=commit, pull_request=pull_request)
        return replace(report, warnings=report.warnings + said)

    def _card(self) -> str:
        card = next(file.content for file in self.contents.files if file.name == CARD_FILE)
        return (card if isinstance(card, bytes) else card.read_bytes()).decode(errors="replace")

    def _require_acceptable(self, state: RemoteState) -> None:
        if self.private and state.head and not state.is_private:
            raise UploadError(
                f"{self.repo} is there already, and public; drop private=True, or make it private on the Hub first"
            )
        needs = f"pull request {self.revision}" if self.branch.startswith("refs/") else f"branch {self.revision}"
        if not state.has_branch and self.revision and (self.create_pr or self.branch.startswith("refs/")):
            raise UploadError(f"{self.repo} has no {needs}; check the revision")
        if self.create_pr and state.head is None:
            raise UploadError(
                f"{self.repo}: there is no such repository to open a pull request in; drop create_pr=True"
            )

    def _stale(self, state: RemoteState, record: dict[str, object] | None) -> list[str]:
        """Return what an earlier upload left there and this one lacks; without one, the weights that are replaced."""
        kept = {file.name for file in self.contents.files}
        names = recorded_hashes(record) if record else filter(_WEIGHTS.fullmatch, state.files)
        return sorted({name for name in names if is_publishable(name)} & {*state.files} - kept)

    def _send(
        self, api: "HfApi", state: RemoteState, changed: list[LocalFile], stale: list[str]
    ) -> tuple[str, str | None]:
        """Make repository and branch if need be, send the files and commit them; return commit and pull request."""
        from huggingface_hub import CommitOperationDelete

        with hub_problems(self.repo, writing=True):
            if state.head is None:
                api.create_repo(self.repo, private=self.private, exist_ok=True)
            if not state.has_branch and self.revision:
                api.create_branch(self.repo, branch=self.revision, exist_ok=True)
        if not changed and not stale:
            return remote_head(api, self.repo, self.revision), None
        sent = _Sent(sum(file.size for file in changed), self.on_progress)
        additions = [
            addition_of(file.name, file.content, sent.on_bytes)
            for file in sorted(changed, key=lambda file: file.size, reverse=True)
        ]
        self._send_large_files(api, additions, sent)
        try:
            return self._commit(api, [*additions, *(CommitOperationDelete(name) for name in stale)], state.head)
        except HubProblem as problem:
            landed = self._landed(api, stale) if problem.is_unanswered else None
            if landed is None:
                raise
            return landed, None

    def _commit(
        self, api: "HfApi", operations: "list[CommitOperationAdd | CommitOperationDelete]", parent: str | None
    ) -> tuple[str, str | None]:
        """Make the commit; return it, and the pull request that it is in."""
        with hub_problems(self.repo, writing=True), warnings.catch_warnings():
            # The client asks about the card once more, and repeats what the Hub says of it as it came.
            warnings.simplefilter("ignore")
            commit = api.create_commit(
                self.repo,
                operations,
                commit_message=f"Upload a conversion by helium_mlx {__version__}",
                revision=self.revision,
                create_pr=self.create_pr,
                # So that a commit that somebody else makes meanwhile is not undone unseen.
                parent_commit=None if self.create_pr else parent,
            )
            if not COMMIT.fullmatch(commit.oid):
                raise ValueError(f"the commit is {shown(commit.oid)}")
            return commit.oid, f"refs/pr/{commit.pr_num}" if commit.pr_num is not None else None

    def _send_large_files(self, api: "HfApi", additions: "list[CommitOperationAdd]", sent: "_Sent") -> None:
        """Send the contents of those that are for LFS or Xet; small ones travel in the commit."""
        weights = [addition for addition in additions if addition.path_in_repo.endswith(".safetensors")]
        others = [addition for addition in additions if addition not in weights]
        for group in (*([one] for one in weights), others):
            # Of several the client counts the files, and Xet the bytes of all.
            hook = told_by_xet(sent.on_bytes) if len(group) == 1 else without_bars()
            with hub_problems(self.repo, writing=True), hook:
                api.preupload_lfs_files(
                    self.repo, group, revision=self.revision, create_pr=self.create_pr, free_memory=False
                )
            sent.have_arrived(sum(addition.upload_info.size for addition in group))

    def _landed(self, api: "HfApi", stale: list[str]) -> str | None:
        """Return the branch's head if it holds the upload although the answer to the commit got lost."""
        if self.create_pr:
            return None
        try:
            state = remote_state(api, self.repo, self.revision)
        except HubProblem:
            return None
        is_there = not differing(self.contents.files, state.files) and not {*stale} & {*state.files}
        return state.head if is_there else None

    def _require_arrived(self, api: "HfApi", commit: str, stale: list[str]) -> None:
        remote = remote_files(api, self.repo, commit)
        wrong = [file.name for file in differing(self.contents.files, remote)] + sorted({*stale} & {*remote})
        if wrong:
            raise UploadError(
                f"{self.repo}: read back, {wrong[0]} is not what was sent (commit {commit}); upload it again, and do "
                "not use that commit"
            )

    def _report(
        self,
        api: "HfApi",
        state: RemoteState,
        changed: list[LocalFile],
        stale: list[str],
        *,
        commit: str | None = None,
        pull_request: str | None = None,
    ) -> UploadReport:
        names = {file.name for file in changed}
        return UploadReport(
            repo=self.repo,
            url=f"{api.endpoint}/{self.repo}" + (f"/commit/{commit}" if commit else ""),
            revision=self.branch,
            commit=commit,
            pull_request=pull_request,
            is_new=state.head is None,
            files=tuple(UploadedFile(f.name, f.size, f.sha256, f.name in names) for f in self.contents.files),
            removed=tuple(stale),
            left_out=self.contents.left_out,
            sent_bytes=sum(file.size for file in changed),
            dry_run=commit is None,
            warnings=self.contents.warnings,
            is_private=self.private if state.head is None else state.is_private,
        )
