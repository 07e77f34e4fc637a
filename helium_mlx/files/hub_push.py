"""`push_to_hub` of models and tokenizers: what they save, in one commit on top of what is there.

What it does not do: look at what is there, or read back; `upload` of a converted directory does (see `publishing/`).
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from helium_mlx.errors import UploadError, UsageError, shown
from helium_mlx.files.hub_client import HubProblem, hub_problems
from helium_mlx.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_REPO_ID = re.compile(r"([\w.-]+/)?[\w.-]+")


def push(
    save: Callable[[Path], object], repo_id: str, *, private: bool | None, commit_message: str | None, what: str
) -> str:
    """Upload what `save` writes into a directory; return the address of the commit.

    `what` is what the commit is of, where `commit_message` does not say. Raises UsageError for a name that is none,
    UploadError, one line, for everything that the Hub does not do.
    """
    # Imported here: a model is loaded without it.
    import tempfile

    _require_name(repo_id)
    api = hub_api(needs_token=True)
    with tempfile.TemporaryDirectory() as directory:
        save(Path(directory))
        try:
            with hub_problems(repo_id, writing=True):
                api.create_repo(repo_id, private=private, exist_ok=True)
                commit = api.upload_folder(
                    repo_id=repo_id, folder_path=directory, commit_message=commit_message or f"Upload {what}"
                )
                address = commit.commit_url
                if not isinstance(address, str):
                    raise ValueError(f"the commit's address is {shown(address)}")
        except HubProblem as problem:
            raise UploadError(str(problem)) from None
    return address


def hub_api(*, needs_token: bool) -> "HfApi":
    """Return the client. Raises UploadError where it needs a token and there is none."""
    from huggingface_hub import HfApi, get_token

    if needs_token and not get_token():
        raise UploadError("there is no token of the Hub on this machine; run `hf auth login`, or set HF_TOKEN")
    return HfApi(library_name="helium_mlx", library_version=__version__)


def _require_name(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if not _REPO_ID.fullmatch(repo_id):
            raise HFValidationError
        validate_repo_id(repo_id)
    except HFValidationError:
        raise UsageError(
            f"repo_id is {shown(repo_id)}; expected user/name, or a name of your own, of letters, digits, -, _ and ."
        ) from None
