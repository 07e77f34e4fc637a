"""Tokens that stand beside a tokenizer's file, in `tokenizer_config.json` and two files that older programs wrote.

Read as transformers' `PreTrainedTokenizerBase.from_pretrained` reads them: `added_tokens_decoder` where it is there,
else `special_tokens_map.json` and `added_tokens.json`; and every named special token that the vocabulary's file does
not add itself. Settings with an effect there and none here are refused.
"""

import io
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard, cast

from helium_mlx.errors import TokenizerError, shown
from helium_mlx.files.names import (
    CHAT_TEMPLATE_FILE,
    CHAT_TEMPLATES_DIRECTORY,
    LEGACY_CHAT_TEMPLATE_FILE,
    SPECIAL_TOKENS_MAP_FILE,
    TOKENIZER_CONFIG_FILE,
    companion_files,
    relative_name,
)
from helium_mlx.files.text import not_utf8
from helium_mlx.files.untrusted import MAX_JSON_BYTES, FileProblem, read_bytes, read_json_object

ADDED_TOKENS_FILE = "added_tokens.json"

# Helium's tokenizer.json adds 105.
MAX_TOKENS = 10_000

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")

# What an object says that is a token.
_AS_TOKEN = {"__type": "AddedToken"}

# Half of a character, which JSON can spell and UTF-8 cannot.
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class DeclaredToken:
    """A token found before a text is split into pieces; `id` is None where only its name is declared."""

    content: str
    id: int | None
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class Declared:
    """What is declared: tokens in the order in which they are added, and whether texts cannot spell special ones.

    `named` are the texts of those that have a name, such as `eos_token`: special, whatever else says so. With
    `is_numbered` ids and flags are those of `added_tokens_decoder`; without, the tokenizer's file knows better.
    """

    tokens: tuple[DeclaredToken, ...] = ()
    split_special_tokens: bool = False
    named: frozenset[str] = frozenset()
    is_numbered: bool = False


NOTHING_DECLARED = Declared()


def read_declared(directory: Path) -> Declared:
    """Return what a checkpoint declares beside its tokenizer's file. Raises TokenizerError, which names the key."""
    path = directory / TOKENIZER_CONFIG_FILE
    config = read_object_if_there(path)
    if config.get("clean_up_tokenization_spaces"):
        raise TokenizerError(
            f"{path} has clean_up_tokenization_spaces, by which text would change after it was shown; set it to false"
        )
    if config.get("add_eos_token") and config.get("eos_token"):
        raise TokenizerError(f"{path} has add_eos_token; a prompt that is continued has no end: set it to false")
    numbered = config.get("added_tokens_decoder")
    if numbered is None:
        in_map = read_object_if_there(directory / SPECIAL_TOKENS_MAP_FILE)
        config |= {
            key: {**value, **_AS_TOKEN} if isinstance(value, dict) and key.endswith("_token") else value
            for key, value in in_map.items()
        }
    named, listed = (list(dict.fromkeys(tokens)) for tokens in _special_tokens(path, config))
    special = list(dict.fromkeys(named + listed))
    if numbered is None:
        added = _added_tokens(directory / ADDED_TOKENS_FILE, {token.content for token in special})
    else:
        names = [token.content for token in named]
        added = [
            _token(path, entry, index, special=isinstance(entry, dict) and entry.get("content") in names)
            for index, entry in _in_order(path, numbered)
        ]
    contents = {token.content for token in added}
    tokens = (*added, *(token for token in special if token.content not in contents))
    if len(tokens) > MAX_TOKENS:
        raise TokenizerError(f"{path} declares {len(tokens)} tokens; at most {MAX_TOKENS} are taken: remove some")
    return Declared(
        tokens,
        bool(config.get("split_special_tokens")),
        frozenset(token.content for token in named),
        numbered is not None,
    )


def read_object_if_there(path: Path) -> dict[str, object]:
    """Return the object in a JSON file, an empty one where there is no file. Raises TokenizerError for others."""
    try:
        return read_json_object(path) if os.path.lexists(path) else {}
    except FileProblem as problem:
        raise TokenizerError(f"{path} {problem}") from None


def _special_tokens(path: Path, config: Mapping[str, object]) -> tuple[list[DeclaredToken], list[DeclaredToken]]:
    """The tokens that have a name, and the list of others, of which an object says itself whether it is special."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if not isinstance(extra, (dict, list)):
        raise TokenizerError(f"{path} has extra_special_tokens {shown(extra)}; expected a list or an object of tokens")
    others = [key for key, value in config.items() if key.endswith("_token") and _is_token(value)]
    named = [config.get(key) for key in (*_NAMED, *(key for key in others if key not in _NAMED))]
    named += extra.values() if isinstance(extra, dict) else []
    listed = extra if isinstance(extra, list) else []
    return (
        [_token(path, value, None, special=True) for value in named if value is not None],
        [_token(path, value, None, special=isinstance(value, str)) for value in listed],
    )


def _is_token(value: object) -> bool:
    """Whether a value under a name of somebody's own is a token: of objects only those that say so are."""
    return isinstance(value, str) or (isinstance(value, dict) and value.items() >= _AS_TOKEN.items())


def _added_tokens(path: Path, special: set[str]) -> list[DeclaredToken]:
    found = [
        DeclaredToken(content, _id(path, index), content in special, normalized=content not in special)
        for content, index in read_object_if_there(path).items()
        if content
    ]
    return sorted(found, key=lambda token: cast(int, token.id))


def has_chat_template(directory: Path) -> bool:
    """Return whether a template for chats came with a tokenizer: Helium has none, a model tuned from it may."""
    names = {relative_name(path, directory) for path in companion_files(directory)}
    if names & {CHAT_TEMPLATE_FILE, LEGACY_CHAT_TEMPLATE_FILE} or any(
        name.startswith(f"{CHAT_TEMPLATES_DIRECTORY}/") for name in names
    ):
        return True
    try:
        return bool(read_json_object(directory / TOKENIZER_CONFIG_FILE).get("chat_template"))
    except FileProblem:
        return False


def read_chat_template(directory: Path) -> str | dict[str, str] | None:
    """Return the template for chats as transformers' tokenizers have it: a text, several by name, or None.

    Files go before `tokenizer_config.json`; `chat_template.json` is for processors only. Raises TokenizerError.
    """
    templates: dict[str, str] = {}
    for path in companion_files(directory):
        name = relative_name(path, directory)
        if name == CHAT_TEMPLATE_FILE:
            templates["default"] = _read_template(path)
        elif name.startswith(f"{CHAT_TEMPLATES_DIRECTORY}/"):
            templates[path.stem] = _read_template(path)
    if templates:
        return templates["default"] if list(templates) == ["default"] else templates
    path = directory / TOKENIZER_CONFIG_FILE
    given = read_object_if_there(path).get("chat_template")
    if given is None or isinstance(given, str):
        return given
    # A list of objects with a name and a template, as transformers saved several of them once.
    pairs = [tuple(map(entry.get, ("name", "template"))) for entry in given] if _are_objects(given) else None
    pairs = list(given.items()) if isinstance(given, dict) else pairs
    if pairs is None or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise TokenizerError(f"{path} has chat_template {shown(given)}; expected a text, or texts with their names")
    return dict(cast("list[tuple[str, str]]", pairs))


def _are_objects(value: object) -> TypeGuard[list[dict[str, object]]]:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _read_template(path: Path) -> str:
    try:
        return io.TextIOWrapper(io.BytesIO(read_bytes(path, MAX_JSON_BYTES)), encoding="utf-8").read()
    except FileProblem as problem:
        raise TokenizerError(f"{path} {problem}") from None
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} {not_utf8(error)}") from None


def declared_name(directory: Path, name: str) -> str | None:
    """Return the text of a named special token, such as `unk_token`, where a checkpoint's settings declare it."""
    for file in (TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_MAP_FILE):
        value = read_object_if_there(directory / file).get(name)
        if value is not None:
            return _token(directory / file, value, None).content
    return None


def _in_order(path: Path, numbered: object) -> Iterable[tuple[int, object]]:
    if not isinstance(numbered, dict) or not all(key.isascii() and key.isdecimal() for key in numbered):
        raise TokenizerError(f"{path} has added_tokens_decoder {shown(numbered)}; expected tokens by their ids")
    return sorted((int(index), entry) for index, entry in cast("dict[str, object]", numbered).items())


def _token(path: Path, entry: object, index: int | None, *, special: bool = False) -> DeclaredToken:
    match {"content": entry} if isinstance(entry, str) else entry:
        case {"content": str(content), **rest} if content and not _SURROGATE.search(content):
            flags = {name: value for name, value in rest.items() if name in _FLAGS}
            if all(isinstance(value, bool) for value in flags.values()):
                is_special = special or bool(flags.pop("special", False))
                flags.setdefault("normalized", not is_special)
                flags.pop("special", None)
                return DeclaredToken(content, index, is_special, **cast("dict[str, bool]", flags))
    raise TokenizerError(f"{path} declares the token {shown(entry)}; expected its text, or an object with its content")


def _id(path: Path, index: object) -> int:
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise TokenizerError(f"{path} has the id {shown(index)}; expected a whole number")
    return index
