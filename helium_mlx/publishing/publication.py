"""What of a converted directory may be published: the files that its record names, if they are what it says."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from helium_mlx.errors import HeliumError, UploadError, shown
from helium_mlx.files.hashes import file_hashes
from helium_mlx.files.hub import DEMO_NAME
from helium_mlx.files.hub_download import is_checkpoint_file
from helium_mlx.files.local_paths import published, published_text, without_local_paths
from helium_mlx.files.names import (
    CHAT_TEMPLATES_DIRECTORY,
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    SETTINGS_FILES,
    TEMPLATE_SUFFIX,
)
from helium_mlx.files.untrusted import MAX_JSON_BYTES, FileProblem, open_file, read_bytes, read_json_object
from helium_mlx.json_writer import to_json
from helium_mlx.model_card.card import with_repository
from helium_mlx.model_card.record import CARD_FILE, CONVERSION_FILE, is_record, recorded_hashes, unconverted

_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json", re.ASCII)


@dataclass(frozen=True)
class LocalFile:
    """A file to publish: in the directory, or in memory where it differs from that."""

    name: str
    content: Path | bytes
    size: int
    sha256: str

    def git_oid(self) -> str:
        """Return git's name for the contents, which the Hub lists for small files."""
        data = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Publication:
    """The files to publish, in the order of their names; what lies beside them and stays; what the user should know."""

    files: tuple[LocalFile, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]


def is_publishable(name: str) -> bool:
    """Whether a name, relative to a checkpoint, is that of a file of it. Nothing else is ever sent or removed."""
    return _WEIGHTS.fullmatch(name) is not None or is_checkpoint_file(name)


def publication(directory: Path, repo: str) -> Publication:
    """Return what is to be published of a converted directory as `repo`.

    The card's commands name the repository then, and neither card nor record nor settings a directory of this machine;
    they are changed in memory only. Raises UploadError for a directory that was not converted here, that has been
    changed since, or whose conversion was not verified.
    """
    record = _record(directory)
    recorded = _recorded_files(record, directory)
    _require_verified(record, directory)
    beside = sorted(_names(directory))
    left_out = [name for name in beside if not is_publishable(name)]
    _require_unchanged(directory, recorded, {*beside} - {*left_out, CONVERSION_FILE})

    card = with_repository(_text(directory / CARD_FILE), repo)
    files = {name: _on_disk(directory / name, name, digest) for name, digest in recorded.items()}
    changed = {CARD_FILE: _in_memory(CARD_FILE, str(without_local_paths(card, directory)).encode())}
    changed |= _without_paths(directory, recorded)
    files |= changed
    files[CONVERSION_FILE] = _in_memory(CONVERSION_FILE, _published_record(record, changed, directory).encode())
    warnings = [] if re.search(r"^license: *\S|^license:$", card, re.MULTILINE) else [
        f"{CARD_FILE} names no licence, because the source's files name none; say on the Hub which one it is"
    ]  # fmt: skip
    return Publication(tuple(files[name] for name in sorted(files)), tuple(left_out), tuple(warnings))


def _record(directory: Path) -> dict[str, object]:
    if not directory.is_dir():
        raise UploadError(f"{directory}: no such directory; name one that `helium-mlx convert` made")
    if problem := unconverted(directory):
        raise UploadError(problem)
    try:
        record = read_json_object(directory / CONVERSION_FILE)
    except FileProblem as problem:
        raise UploadError(
            f"{directory / CONVERSION_FILE}: {problem}; only what `helium-mlx convert` made is published"
        ) from None
    if not is_record(record):
        raise UploadError(f"{directory / CONVERSION_FILE} is not of this converter; convert the checkpoint again")
    return record


def _recorded_files(record: dict[str, object], directory: Path) -> dict[str, str]:
    recorded = {name: str(digest) for name, digest in recorded_hashes(record).items()}
    for name in recorded:
        if not is_publishable(name) or name == CONVERSION_FILE:
            raise UploadError(f"{directory / CONVERSION_FILE} names {shown(name)}, which is not a file of a checkpoint")
    if CARD_FILE not in recorded or not any(name.endswith(".safetensors") for name in recorded):
        raise UploadError(f"{directory / CONVERSION_FILE} names no card or no weights; convert the checkpoint again")
    return recorded


def _require_verified(record: dict[str, object], directory: Path) -> None:
    figures = record.get("verification")
    if not isinstance(figures, dict) or not figures:
        raise UploadError(
            f"{directory} was converted without verification, and what nobody has checked is not published; convert it "
            "again with it"
        )


def _require_unchanged(directory: Path, recorded: dict[str, str], present: set[str]) -> None:
    """Raise UploadError unless names and SHA-256 are those of the record."""
    again = "convert it again, or put back what was there"
    for names, problem in (({*recorded} - present, "is missing"), (present - {*recorded}, "came later")):
        if names:
            raise UploadError(f"{directory / min(names)} {problem}, says {CONVERSION_FILE}; {again}")
    try:
        for name in recorded:
            open_file(directory / name).close()
        hashes = {name: file_hashes([directory / name])[Path(name).name] for name in sorted(recorded)}
    except (FileProblem, HeliumError) as problem:
        raise UploadError(f"{directory}: {problem}") from None
    changed = [name for name, digest in hashes.items() if digest != recorded[name]]
    if changed:
        raise UploadError(f"{directory / changed[0]} has been changed since, says {CONVERSION_FILE}; {again}")


def _names(directory: Path) -> list[str]:
    """Return the names in a directory; the files in its folder of chat templates come with that folder's name."""
    templates = directory / CHAT_TEMPLATES_DIRECTORY
    is_folder = templates.is_dir() and not templates.is_symlink()
    paths = [path for path in directory.iterdir() if path != templates or not is_folder]
    paths += templates.iterdir() if is_folder else []
    return [path.relative_to(directory).as_posix() for path in paths]


def _on_disk(path: Path, name: str, digest: str) -> LocalFile:
    return LocalFile(name, path, path.stat().st_size, digest)


def _in_memory(name: str, data: bytes) -> LocalFile:
    return LocalFile(name, data, len(data), hashlib.sha256(data).hexdigest())


def _text(path: Path) -> str:
    try:
        return read_bytes(path, MAX_JSON_BYTES).decode(errors="replace")
    except FileProblem as problem:
        raise UploadError(f"{path}: {problem}") from None


def _without_paths(directory: Path, recorded: Collection[str]) -> dict[str, LocalFile]:
    """Return settings and templates that hold a path of this machine, as earlier versions wrote them, without it."""
    changed: dict[str, LocalFile] = {}
    for name in {*recorded} & {CONFIG_FILE, GENERATION_CONFIG_FILE, *SETTINGS_FILES}:
        with suppress(FileProblem):
            values = read_json_object(directory / name)
            if (cleaned := published(values, directory)) != values:
                changed[name] = _in_memory(name, (to_json(cleaned, indent=2) + "\n").encode())
    for name in recorded:
        if name.endswith(TEMPLATE_SUFFIX):
            data = (directory / name).read_bytes()
            if (text := published_text(data, directory)) != data:
                changed[name] = _in_memory(name, text)
    return changed


def _published_record(record: dict[str, object], changed: Mapping[str, LocalFile], directory: Path) -> str:
    """Return the record with the new hashes, and with the name alone of a source that is a directory here."""
    files = recorded_hashes(record) | {name: file.sha256 for name, file in changed.items()}
    text = to_json(published(record, directory) | {"files": files}, indent=2) + "\n"
    source = str(record.get("source", ""))
    if record.get("revision") is None and source != DEMO_NAME and "/" in source:
        quoted, name = (json.dumps(part, ensure_ascii=False)[1:-1] for part in (source, Path(source).name))
        text = text.replace(quoted, name)
    return text
