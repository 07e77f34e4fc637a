"""What a source says of itself beside its weights: its card's metadata, its licence, its languages, where it is from.

The published models' own licences and languages stand here too, for copies that lost their card on the way. Helium-1-2b
is distilled from Gemma 2 and so under two sets of terms, of which its card's metadata names only one.
"""

import hashlib
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import CheckpointError, one_line
from helium_mlx.files.hub_cache import snapshot_of
from helium_mlx.files.untrusted import (
    MAX_DEPTH,
    MAX_JSON_BYTES,
    FileProblem,
    UnreadableFile,
    bracket_depth,
    read_bytes,
    read_json_object,
    require_file,
)
from helium_mlx.model_card.record import CARD_FILE, CONVERSION_FILE, recorded_hashes
from helium_mlx.tokenizer.declared import has_chat_template

LICENCE_FILE = re.compile(r"(LICEN[CS]E|NOTICE)[\w.-]*")
NOTICE_FILE = "NOTICE"

# The words that the Gemma terms ask for (section 3.1) in a file of that name, and their SHA-256.
GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n"
GEMMA_NOTICE_HASH = hashlib.sha256(GEMMA_NOTICE.encode()).hexdigest()

# identifier in metadata -> name and address
LICENCES = {
    "cc-by-4.0": ("CC-BY 4.0", "https://creativecommons.org/licenses/by/4.0/"),
    "cc-by-sa-4.0": ("CC-BY-SA 4.0", "https://creativecommons.org/licenses/by-sa/4.0/"),
    "gemma": ("Gemma Terms of Use", "https://ai.google.dev/gemma/terms"),
}
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")

# A card's front matter is a few hundred bytes.
_MAX_METADATA = 20_000
_MAX_VALUES = 200
_OURS = "The weights are under the source's terms"
_ILLEGIBLE = "the metadata of the source's card cannot be read; look its licence up, and add it here"
_NOT_HERE = (
    "the source's card and licence are not in the Hub's cache, and the Hub was not asked; look the licence up, and add "
    "it here, or convert it again with a network"
)
Metadata = dict[str, object]


@dataclass(frozen=True)
class PublishedFamily:
    """A model that Kyutai published: its repositories, its shape, its licence and its languages."""

    repositories: re.Pattern[str]
    shape: tuple[str, int, int, int]  # model_type, hidden_size, num_hidden_layers, vocab_size
    licence: str
    languages: tuple[str, ...]
    is_under_gemma_terms: bool


FAMILIES = (
    PublishedFamily(
        re.compile(r"kyutai/helium-1-preview-2b.*"),
        ("helium", 2560, 24, 48000),
        "cc-by-4.0",
        ("en", "fr", "de", "it", "pt", "es"),
        is_under_gemma_terms=False,
    ),
    PublishedFamily(
        re.compile(r"kyutai/helium-1-2b.*"),
        ("llama", 2048, 28, 64000),
        "cc-by-sa-4.0",
        (
            *("bg", "cs", "da", "de", "el", "en", "es", "et", "fi", "fr", "ga", "hr"),
            *("hu", "it", "lt", "lv", "mt", "nl", "pl", "pt", "ro", "sk", "sl", "sv"),
        ),
        is_under_gemma_terms=True,
    ),
)


@dataclass(frozen=True)
class Source:
    """What is known of a source.

    `repository` is where it is from, and None where nothing says so; `is_exact` is false where that is only what its
    config names as its origin, from which it may have been trained on. `metadata` has the keys that a conversion keeps.
    `terms` are sentences of its card about the Gemma terms; `problem` says what kept its card from being read.
    `has_chat_template` is true of a model that was tuned to chat, where its template came with it.
    """

    repository: str | None
    is_exact: bool
    family: PublishedFamily | None
    metadata: Metadata
    terms: tuple[str, ...]
    is_under_gemma_terms: bool
    problem: str | None
    has_chat_template: bool


def read_source(
    directory: Path, config: HeliumConfig, hashes: Mapping[str, str], *, root: Path | None = None
) -> Source:
    """Return what a source's directory says; `hashes` are the SHA-256 of its files by name, where they are known.

    `root` is the directory whose terms hold for those in it, this one among them; in the Hub's cache it is known.
    """
    repository, is_exact = _origin(directory, config, hashes)
    metadata, text, problem = _cards(directory, root)
    family = _family(repository, config)
    kept = {key: value for key, value in metadata.items() if key.startswith("license") or key == "language"}
    if not all(map(_is_plain, kept.values())):
        kept, problem = {}, _ILLEGIBLE
    if family is not None:
        kept.setdefault("language", list(family.languages))
        kept.setdefault("license", family.licence)
    terms = _sentences_about_gemma(text)
    is_under_gemma_terms = bool(terms) or "gemma" in _as_list(kept.get("license"))
    is_under_gemma_terms |= family is not None and family.is_under_gemma_terms
    return Source(
        repository, is_exact, family, kept, terms, is_under_gemma_terms, problem, has_chat_template(directory)
    )


def licence_files(directory: Path, root: Path | None = None) -> list[Path]:
    """Return the licence and notice files of a source, which go where its weights go.

    Those of the folders above it, up to `root` or the top of the repository, too, but for names that are nearer.
    Raises CheckpointError for one that is not to be opened.
    """
    found: dict[str, Path] = {}
    for folder in reversed(_folders_of_terms(directory, root)):
        found |= {path.name: path for path in folder.iterdir() if LICENCE_FILE.fullmatch(path.name)}
    paths = [found[name] for name in sorted(found)]
    for path in paths:
        try:
            require_file(path, MAX_JSON_BYTES)
        except UnreadableFile as problem:
            raise CheckpointError(f"{path}: {problem}") from None
    return paths


def copy_licences(source: Path, config: HeliumConfig, destination: Path, root: Path | None = None) -> None:
    """Copy licence and notice files, and write the notice that the Gemma terms ask for where it is missing."""
    for path in licence_files(source, root):
        shutil.copyfile(path, destination / path.name)
    if needs_notice(source, config, root):
        (destination / NOTICE_FILE).write_text(GEMMA_NOTICE)


def needs_notice(source: Path, config: HeliumConfig, root: Path | None = None) -> bool:
    """Whether a source is under the Gemma terms and has no notice of that."""
    is_noticed = any(path.name.startswith(NOTICE_FILE) for path in licence_files(source, root))
    return not is_noticed and read_source(source, config, {}, root=root).is_under_gemma_terms


def licence_section(source: Source) -> list[str]:
    """Return the lines of a card about the licence: the source's metadata in words, and what it says besides."""
    named = _as_list(source.metadata.get("license"))
    links = [
        f"[{LICENCES[name][0]}]({LICENCES[name][1]})" if name in LICENCES else f"`{one_line(name)}`" for name in named
    ]
    if "license_name" in source.metadata:
        links = [f"`{one_line(str(source.metadata['license_name']))}`"]
    if "license_link" in source.metadata:
        links[-1:] = [f"{links[-1] if links else 'see'} (<{one_line(str(source.metadata['license_link']))}>)"]
    if source.is_under_gemma_terms and "gemma" not in named:
        name, address = LICENCES["gemma"]
        links.append(f"the [{name}]({address})")
    if not links:
        return ["The source's files name no licence; ask whoever made it before you pass this on."]
    lines = [f"{_OURS}: {' and '.join(links)}. They were changed as said above."]
    return lines + [f"\n> {term}" for term in source.terms]


def _folders_of_terms(directory: Path, root: Path | None) -> list[Path]:
    """Return the directories whose cards and licences hold for a source, nearest first.

    A subfolder of a repository is under the repository's terms.
    """
    snapshot = snapshot_of(directory)
    top = snapshot.root if snapshot else root
    if top is None or not directory.is_relative_to(top):
        return [directory]
    return [directory, *(folder for folder in directory.parents if folder.is_relative_to(top))]


def _cards(directory: Path, root: Path | None) -> tuple[Metadata, str, str | None]:
    """Return metadata and text of the cards that hold for a directory, and what is wrong; nearer ones come first."""
    metadata: Metadata = {}
    texts: list[str] = []
    problem: str | None = None
    for folder in _folders_of_terms(directory, root):
        values, text, own_problem = _card(folder)
        # A licence, its name and its link are one statement.
        is_licensed = _names_licence(metadata)
        values = {key: value for key, value in values.items() if not (is_licensed and _names_licence({key: value}))}
        metadata = values | metadata
        texts.append(text)
        problem = problem or own_problem
    snapshot = snapshot_of(directory)
    if problem is None and snapshot is not None and not _names_licence(metadata) and not snapshot.knows(CARD_FILE):
        problem = _NOT_HERE
    return metadata, "\n".join(texts), problem


def _names_licence(metadata: Metadata) -> bool:
    return any(key.startswith("license") for key in metadata)


def _card(folder: Path) -> tuple[Metadata, str, str | None]:
    """Return metadata and text of a folder's own card, and what is wrong with it; nothing at all without one."""
    # Imported here: it takes a while, and only conversions need it. It comes with huggingface_hub.
    import yaml

    try:
        text = read_bytes(folder / CARD_FILE, MAX_JSON_BYTES).decode(errors="replace")
    except UnreadableFile:
        return {}, "", None
    found = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", text, re.DOTALL | re.MULTILINE)
    if not found:
        return {}, text, None
    metadata = None
    # Beside its own errors the parser has Python's, for characters and versions that there cannot be.
    with suppress(yaml.YAMLError, ValueError, OverflowError, RecursionError):
        if len(found[1]) <= _MAX_METADATA and bracket_depth(found[1].encode()) <= MAX_DEPTH:
            # BaseLoader: every scalar stays text, so that the language `no` does not become a boolean.
            metadata = yaml.load(found[1], Loader=yaml.BaseLoader)
    if not isinstance(metadata, dict):
        return {}, text, _ILLEGIBLE
    return {str(key): value for key, value in metadata.items()}, text[found.end() :], None


def _is_plain(value: object) -> bool:
    """Whether a value is text or a list of texts; YAML's aliases can make others that are far larger than the file."""
    return isinstance(value, str) or (
        isinstance(value, list) and len(value) <= _MAX_VALUES and all(isinstance(one, str) for one in value)
    )


def _sentences_about_gemma(text: str) -> tuple[str, ...]:
    lines = (re.sub(r"^[-*>]\s+", "", line.strip()) for line in text.splitlines())
    found = (line for line in lines if re.search(r"(?i)gemma.{0,200}(terms|licen)", line))
    # A card of ours says the rest of it by itself.
    return tuple(one_line(line) for line in found if not line.startswith(_OURS))[:5]


def _origin(directory: Path, config: HeliumConfig, hashes: Mapping[str, str]) -> tuple[str | None, bool]:
    if snapshot := snapshot_of(directory):
        return snapshot.repo, True
    try:
        record = read_json_object(directory / CONVERSION_FILE)
    except FileProblem:
        record = {}
    files, source = recorded_hashes(record), str(record.get("source"))
    is_unchanged = bool(hashes) and all(files.get(name) == digest for name, digest in hashes.items())
    if is_unchanged and record.get("revision") is not None and _REPO_ID.fullmatch(source):
        return source, True
    named = config.extra.get("_name_or_path")
    if isinstance(named, str) and _REPO_ID.fullmatch(named) and not named.startswith("."):
        return named, False
    return None, False


def _family(repository: str | None, config: HeliumConfig) -> PublishedFamily | None:
    """Return the published model that a source is or descends from, by its name or else its shape."""
    shape = (config.model_type, config.hidden_size, config.num_hidden_layers, config.vocab_size)
    by_name = [family for family in FAMILIES if repository and family.repositories.fullmatch(repository)]
    return next(iter(by_name + [family for family in FAMILIES if family.shape == shape]), None)


def _as_list(value: object) -> list[str]:
    values = cast("list[object]", value) if isinstance(value, list) else [] if value is None else [value]
    return [str(one) for one in values]
