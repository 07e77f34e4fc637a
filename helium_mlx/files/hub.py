"""From what a user names (a directory, a Hub repository, or `demo`) to a directory on this machine.

The network is used only for a repository that is not in the local cache. `huggingface_hub` does the work: resumable
downloads, tokens, `HF_ENDPOINT`, `HF_HUB_OFFLINE`. What it raises becomes one line, which never holds a token.
"""

import re
import sys
from pathlib import Path

from helium_mlx.errors import CheckpointError, one_line
from helium_mlx.files.names import INDEX_FILE
from helium_mlx.files.untrusted import FileProblem, read_json_object

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")

# What a checkpoint consists of; never pickles, never code.
FILE_PATTERNS = ["*.safetensors", "*.json", "tokenizer*.model", "README.md", "LICENSE*", "LICENCE*", "NOTICE*"]

DEMO_NAME = "demo"
DEMO_DIRECTORY = Path(__file__).parents[1] / "demo"

AGAIN = "run the same command again: what the Hub has is not sent again"


def resolve(path_or_repo: str | Path, *, revision: str | None = None, subfolder: str | None = None) -> Path:
    """Return the directory of a checkpoint, downloading it first if it is a Hub repository that is not cached.

    Raises CheckpointError, one line, if there is no such directory or the Hub cannot give it.
    """
    directory = _local_directory(str(path_or_repo))
    if directory is not None and revision is not None:
        raise CheckpointError(
            f"{path_or_repo} is a directory on this machine, which has no revision {revision}; leave that out"
        )
    return _inside(directory or _download(str(path_or_repo), revision), subfolder)


def resolve_file(
    path_or_repo: str | Path, file: str, *, revision: str | None = None, subfolder: str | None = None
) -> Path:
    """Return one file of a checkpoint, which is all that is downloaded; it may be missing from a directory.

    Raises CheckpointError, one line, if there is no such directory or the Hub cannot give the file.
    """
    repo = str(path_or_repo)
    directory = _local_directory(repo)
    if directory is not None:
        return _inside(directory, subfolder) / file
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(repo, file, revision=revision, subfolder=subfolder))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise _download_error(repo, revision, error) from None


def _inside(directory: Path, subfolder: str | None) -> Path:
    if not subfolder:
        return directory
    inside = directory / subfolder
    if Path(subfolder).is_absolute() or ".." in Path(subfolder).parts or not inside.is_dir():
        raise CheckpointError(f"{directory} has no folder {one_line(subfolder, 100)!r}; give the name of one in it")
    return inside


def _local_directory(name: str) -> Path | None:
    if name == DEMO_NAME:
        return DEMO_DIRECTORY
    if name and Path(name).exists():
        return Path(name)
    if not _REPO_ID.fullmatch(name) or name.startswith((".", "/")):
        raise CheckpointError(
            f"{name or repr(name)}: no such directory, and not a Hub repository (user/name); "
            f"{DEMO_NAME!r} is the one in this package"
        )
    return None


def _download(repo: str, revision: str | None) -> Path:
    # Imported here: 0.2 s that a local checkpoint need not pay.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    try:
        cached = Path(snapshot_download(repo, revision=revision, allow_patterns=FILE_PATTERNS, local_files_only=True))
        if _is_whole(cached) or constants.HF_HUB_OFFLINE:
            return cached
    except LocalEntryNotFoundError:
        pass
    except ValueError as error:
        raise CheckpointError(f"{repo}: {_first_line(error)}") from None
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        plan = snapshot_download(repo, revision=revision, allow_patterns=FILE_PATTERNS, dry_run=True)
        size = sum(file.file_size or 0 for file in plan if file.will_download)
        print(f"Downloading {repo}: {len(plan)} files, {_readable(size)}", file=sys.stderr, flush=True)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=FILE_PATTERNS))
    except (HfHubHTTPError, OSError) as error:
        raise _download_error(repo, revision, error) from None


def _is_whole(snapshot: Path) -> bool:
    """Whether a cached snapshot has what a checkpoint needs; somebody may have fetched its config only."""
    try:
        index = read_json_object(snapshot / INDEX_FILE) if (snapshot / INDEX_FILE).exists() else {"weight_map": {}}
    except FileProblem:
        return True  # for `open_checkpoint` to refuse
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        return True
    shards = set(map(str, weight_map.values()))
    has_weights = any(snapshot.glob("*.safetensors")) and all((snapshot / name).exists() for name in shards)
    return has_weights and any(snapshot.glob("tokenizer*"))


def _download_error(repo: str, revision: str | None, error: Exception) -> CheckpointError:
    at, doubtful = (f" at revision {revision}", "the revision, ") if revision else ("", "")
    return CheckpointError(
        f"{repo}{at}: cannot be downloaded from the Hub ({_first_line(error)}); "
        f"check the name, {doubtful}the network and `hf auth login`, or try {DEMO_NAME!r}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")


def _readable(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def client_errors() -> tuple[type[Exception], ...]:
    """Return what calls of `huggingface_hub` raise.

    Beside its own errors those are its transport's, which come from a package that is another one in other versions
    (httpx, httpx2); RuntimeError, which its threads wrap their errors in; and ValueError, for answers it cannot read.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, ValueError, RuntimeError)


def explained(error: BaseException, repo: str) -> str:
    """Return what went wrong in a call about `repo`, and what to do, in one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    status, said = status_of(error), _said(error)
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo}: HF_HUB_OFFLINE is set, so that the Hub is not asked; unset it"
    if status is None:
        kind = type(error).__name__
        return f"{repo}: the Hub at {constants.ENDPOINT} was not reached or broke off ({said or kind}); {AGAIN}"
    answered = f"{status}, {said}" if said else str(status)
    return f"{repo}: {_remedy(status).format(answered=answered)}"


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error is about; None for those of the transport and of the client itself."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def may_have_been_done(error: BaseException) -> bool:
    """Whether the Hub may have done what it was asked, and only the answer is missing."""
    status = status_of(error)
    return status is None or status >= 500


def without_token(text: str) -> str:
    """Return a text in which the token of this machine is not legible."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "***") if token else text


def _remedy(status: int) -> str:
    known = {
        400: "the Hub refused what was sent ({answered})",
        401: "the Hub does not accept the token ({answered}); log in with `hf auth login`, or set HF_TOKEN anew",
        403: "the token may not write there ({answered}); take one with write access to it, or another name",
        404: "the Hub has no such repository or revision, or the token may not see it ({answered}); check the name",
        409: "the repository is being changed by somebody else ({answered}); " + AGAIN,
        412: "the repository was changed by somebody else meanwhile ({answered}); " + AGAIN,
        429: "the Hub asks for a pause ({answered}); wait some minutes, and " + AGAIN,
    }
    if status >= 500:
        return "the Hub failed ({answered}); " + AGAIN
    # Braces of what the Hub said are no fields of a format.
    return known.get(status, "the Hub refused the request ({answered})")


def _said(error: BaseException) -> str:
    """Return what the server says, else what the client says of it, in one line."""
    said = getattr(error, "server_message", None)
    if not said and status_of(error) is None:
        said = str(error)
    return one_line(without_token(re.sub(r"\s+", " ", str(said or "")).strip().rstrip(".")), 300)
