"""A checkpoint from the Hub into its cache: the files that belong to it, and no others, of one commit.

Fetched one after the other, so that an error is of a known file and Ctrl-C ends at once. The commit counts as the
branch's only when all of it is there.
"""

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from helium_mlx.errors import one_line, shown
from helium_mlx.files.hub_access import HubAccess
from helium_mlx.files.hub_cache import COMMIT, Snapshot, cached_snapshot, snapshot_at
from helium_mlx.files.hub_client import HubProblem, hub_problems, legible
from helium_mlx.files.names import ADAPTER_CONFIG_FILE, CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, is_companion
from helium_mlx.files.untrusted import FileProblem, read_json_object
from helium_mlx.progress import Progress, note

# What says under which terms the weights are; of the folders around a subfolder, too.
DOCUMENTS = re.compile(r"README\.md|(LICEN[CS]E|NOTICE)[\w.-]*", re.ASCII)

# What a checkpoint has besides; never pickles, never code.
OTHER_FILES = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer[\w.-]*\.model|conversion\.json", re.ASCII
)
_WEIGHTS = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)
_KNOWN_DOCUMENTS = ("README.md", "LICENSE")
_MAX_FILE_BYTES = 1 << 50
_MAX_FILES = 200_000

# What is begun anew counts twice.
_SPARE_BYTES = 1 << 24


@dataclass(frozen=True)
class _Listing:
    """The files of a commit, with their sizes."""

    commit: str
    sizes: Mapping[str, int]


def is_checkpoint_file(name: str) -> bool:
    """Whether a name, relative to a checkpoint, is that of one of its files, weights and their index aside."""
    return bool(OTHER_FILES.fullmatch(name) or DOCUMENTS.fullmatch(name)) or is_companion(name)


def download(repo: str, revision: str | None, subfolder: str | None, access: HubAccess, *, documents: bool) -> Path:
    """Return the directory of a checkpoint in the cache, completed if need be.

    What is in the cache is not asked for again, and needs no network. With `documents`, card and licence count as part
    of it; other programs leave them out. Where they are all that is missing, they are not insisted on.

    Raises HubProblem.
    """
    at = revision or "main"
    snapshot = _cached(repo, at, access)
    if snapshot is None:
        return _fetch(repo, at, at, subfolder, access)
    directory = snapshot.root / (subfolder or "")
    is_whole = _is_whole(directory)
    if is_whole and (not documents or all(map(snapshot.knows, _KNOWN_DOCUMENTS))):
        return directory
    try:
        return _fetch(repo, snapshot.commit if is_whole else at, at, subfolder, access)
    except HubProblem:
        # Offline, its opening says what of it is missing.
        if is_whole or (_is_offline(access) and directory.is_dir()):
            return directory
        raise


def download_file(repo: str, revision: str | None, subfolder: str | None, file: str, access: HubAccess) -> Path:
    """Return one file of a checkpoint in the cache, fetched if need be. Raises HubProblem."""
    at, name = revision or "main", f"{subfolder}/{file}" if subfolder else file
    snapshot = _cached(repo, at, access)
    if snapshot and (snapshot.root / name).exists():
        return snapshot.root / name
    listing = _listing(repo, at, access)
    if name not in listing.sizes:
        raise HubProblem(f"{repo}: the Hub has no {name} in it at {at}; check the name")
    _fetch_file(repo, listing, name, access)
    snapshot = snapshot_at(repo, listing.commit, access.cache)
    snapshot.note_revision(at)
    return snapshot.root / name


def _cached(repo: str, revision: str, access: HubAccess) -> Snapshot | None:
    """Return the commit that need not be asked for; None too where all is to be fetched again."""
    return None if access.force_download else cached_snapshot(repo, revision, access.cache)


def _is_offline(access: HubAccess) -> bool:
    from huggingface_hub import constants

    return access.local_files_only or constants.HF_HUB_OFFLINE


def _is_whole(directory: Path) -> bool:
    """Whether a cached directory has what a checkpoint needs; somebody may have fetched its config only."""
    has_tokenizer = (directory / "tokenizer.json").exists() or any(directory.glob("tokenizer*.model"))
    if not has_tokenizer:
        return False
    if not (directory / CONFIG_FILE).exists():
        # Kyutai's only file, which other names of ours are not.
        others = {path.name for path in directory.glob("*.safetensors")} - {WEIGHTS_FILE}
        return bool(others) and not (directory / INDEX_FILE).exists()
    if (directory / WEIGHTS_FILE).exists():
        return True
    if not (directory / INDEX_FILE).exists():
        return False
    shards = _shards(directory / INDEX_FILE)
    return all((directory / name).exists() for name in shards)


def _fetch(repo: str, revision: str, name: str, subfolder: str | None, access: HubAccess) -> Path:
    """Fetch what is missing of `revision`, which `name` stands for, and return its directory in the cache."""
    listing, prefix = _listing(repo, revision, access), f"{subfolder}/" if subfolder else ""
    snapshot = snapshot_at(repo, listing.commit, access.cache)
    inside = {path.removeprefix(prefix) for path in listing.sizes if path.startswith(prefix)}
    if not listing.sizes:
        raise HubProblem(f"{repo}: the Hub lists no files in it at {name}; check the name, or leave the revision out")
    if not inside:
        raise HubProblem(f"{repo}: there is no subfolder {subfolder} in it at {name}; check its name")
    wanted = {prefix + path for path in inside if is_checkpoint_file(path)}
    around = {"", *(f"{folder}/" for folder in accumulate(prefix.split("/")[:-1], "{}/{}".format))}
    wanted |= {path for path in listing.sizes if _is_document(path, around)}
    # So that an adapter, which is not fetched, can be told of.
    wanted |= {prefix + path for path in inside & {ADAPTER_CONFIG_FILE}}
    if INDEX_FILE in inside and WEIGHTS_FILE not in inside:
        # It says which weights are wanted, so that their size can be told.
        _fetch_file(repo, listing, prefix + INDEX_FILE, access)
        wanted.add(prefix + INDEX_FILE)
    index = snapshot.root / prefix / INDEX_FILE
    wanted |= {prefix + path for path in _weights(inside, index)}
    missing = sorted(path for path in wanted if access.force_download or not (snapshot.root / path).exists())
    _fetch_files(repo, listing, missing, access)
    with hub_problems(repo):
        for path in _KNOWN_DOCUMENTS:
            if path not in listing.sizes:
                snapshot.note_absent(path)
        snapshot.note_revision(name)
    return snapshot.root / prefix


def _is_document(path: str, folders: Set[str]) -> bool:
    """Whether a file says under which terms the weights are, and lies in one of the folders."""
    folder, slash, name = path.rpartition("/")
    return folder + slash in folders and DOCUMENTS.fullmatch(name) is not None


def _weights(names: set[str], index: Path) -> Sequence[str]:
    """Return the weight files to fetch, of the names in a folder: as transformers reads them, or Kyutai's only one."""
    if WEIGHTS_FILE in names:
        return [WEIGHTS_FILE]
    if INDEX_FILE in names:
        return sorted(_shards(index) & names)
    others = [name for name in names if _WEIGHTS.fullmatch(name)]
    return others if len(others) == 1 and not names & {CONFIG_FILE, ADAPTER_CONFIG_FILE} else []


def _shards(index: Path) -> set[str]:
    """Return the files that an index names; none of one that is malformed, which its opening is to refuse."""
    try:
        weight_map = read_json_object(index).get("weight_map")
    except FileProblem:
        return set()
    names = weight_map.values() if isinstance(weight_map, dict) else ()
    return {name for name in names if isinstance(name, str) and _WEIGHTS.fullmatch(name)}


def _listing(repo: str, revision: str, access: HubAccess) -> _Listing:
    """Ask the Hub for the files of a revision. Raises HubProblem, also for an answer that is none."""
    if access.local_files_only:
        raise HubProblem(
            f"{repo}: is not, or not whole, in {access.cache} at {revision}, and local_files_only says not to ask the "
            "Hub; leave that out"
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    with hub_problems(repo):
        try:
            info = HfApi(token=access.token).model_info(repo, revision=revision, files_metadata=True)
        except RevisionNotFoundError as error:
            answer = legible(str(error.server_message or ""))
            raise HubProblem(
                f"{repo}: the Hub has no revision {revision} of it ({answer}); check the name, the revision, "
                "or leave that out"
            ) from None
        if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):
            raise ValueError(f"the commit is {shown(info.sha)}")
        files = info.siblings or []
        if len(files) > _MAX_FILES:
            raise ValueError(f"{len(files)} files")
        return _Listing(info.sha, {file.rfilename: _size(file.rfilename, file.size) for file in files})


def _size(name: object, size: object) -> int:
    if not isinstance(name, str):
        raise ValueError(f"a file's name is {shown(name)}")
    if not isinstance(size, int) or not 0 <= size < _MAX_FILE_BYTES:
        raise ValueError(f"the size of {one_line(name, 100)} is {shown(size)}")
    return size


def _fetch_files(repo: str, listing: _Listing, names: Sequence[str], access: HubAccess) -> None:
    """Fetch files one after the other, and show how far all of them are."""
    from huggingface_hub.utils import are_progress_bars_disabled

    if not names:
        return
    total = sum(listing.sizes[name] for name in names)
    files = "1 file" if len(names) == 1 else f"{len(names)} files"
    note(f"Downloading {repo}: {files}, {_readable(total)}")
    progress = Progress("Downloading", unit="B", in_log=False)
    progress.is_drawn &= not are_progress_bars_disabled()
    before = 0
    try:
        for name in names:
            progress(before, total)

            def on_bytes(done: int, *, start: int = before, most: int = listing.sizes[name]) -> None:
                progress(start + min(done, most), total)

            _fetch_file(repo, listing, name, access, on_bytes)
            before += listing.sizes[name]
        progress(total, total)
    finally:
        progress.close()


def _fetch_file(
    repo: str, listing: _Listing, name: str, access: HubAccess, on_bytes: Callable[[int], None] = lambda done: None
) -> None:
    """Fetch one file into the cache, where it has the size that was listed, or raise HubProblem.

    `on_bytes(done)` is told of its bytes as they arrive.
    """
    from huggingface_hub import hf_hub_download

    snapshot = snapshot_at(repo, listing.commit, access.cache)
    with hub_problems(repo):
        # The client asks for a class of tqdm's, and uses these of its methods.
        most = 2 * listing.sizes[name] + _SPARE_BYTES
        bar: Any = type("Bar", (_ClientBar,), {"on_bytes": staticmethod(on_bytes), "most": most})
        path = Path(
            hf_hub_download(
                repo,
                name,
                revision=listing.commit,
                cache_dir=access.cache,
                force_download=access.force_download,
                token=access.token,
                tqdm_class=bar,
            )
        )
        if path != snapshot.root / name:
            path.unlink()
            raise ValueError(f"{name} is said to be of another commit")
        size = path.stat().st_size
        if size != listing.sizes[name]:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise ValueError(f"{name} has {size} bytes, and was said to have {listing.sizes[name]}")


class _ClientBar:
    """What the client takes for its progress bar: draws nothing, tells of the bytes that it counts, and bounds them.

    A body that never ends, or unpacks to any size, would else fill the disk before its size is looked at.
    """

    on_bytes: Callable[[int], None]
    most: int

    def __init__(self, *, initial: int = 0, total: int | None = None, **_: object) -> None:
        self.n = initial
        self.total = total

    def update(self, n: float | None = 1) -> None:
        """Count `n` more bytes. Raises ValueError for more than there can be; the client has not written them yet."""
        self.n += int(n or 0)
        if self.n > self.most:
            raise ValueError(f"a file has over {self.most} bytes, far more than was said")
        self.on_bytes(self.n)

    def update_transfer(self, n: float | None = 1) -> None:
        """Xet's bytes on the network, of which those on disk are made, are not counted too."""

    def set_postfix_str(self, text: str = "", refresh: bool = True) -> None:
        """Take what a bar would show; so do the next ones."""

    set_transfer_postfix_str = set_postfix_str

    def refresh(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> "_ClientBar":
        return self

    def __exit__(self, *_: object) -> None: ...


def _readable(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
