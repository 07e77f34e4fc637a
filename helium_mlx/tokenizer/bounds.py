"""What a tokenizer file may ask for: bounds on what its rules make of a text, and what Rust would panic over.

A short text can become any amount of memory through rules that multiply, and a panic writes a traceback to standard
error before Python hears of it. So both are looked for in the file.
"""

import base64
import binascii
import json
import re
import struct
import unicodedata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import tokenizers

# What a tokenizer.json may hold beside its vocabulary; Helium's has a dozen parts, and its texts grow by a space.
MAX_STEPS = 1000
MAX_GROWTH = 100

# A group's beginning, a choice, or anything else with how often it is repeated; a class in brackets may hold others.
_REGEX_PART = re.compile(
    r"\((?:\?(?:[:=!>]|<[=!]|\w+:))?|\||(?:\)|\\.(?:\{\^?\w+\})?|\[\^?\]?(?:\\.|\[[^\]]*\]|[^\\\]])*\]|[^()|])"
    r"(?P<repeated>(?:[*+?]|\{\d*,\d*\})[?+]?)?",
    re.DOTALL,
)
_CHARSMAP = re.compile(rb'"precompiled_charsmap"\s*:\s*(?:"([^"]*)"|.)', re.DOTALL)


def excess(tokenizer: "tokenizers.Tokenizer") -> str | None:
    """Say what in a tokenizer would make much of little text, and so take any amount of memory; None for nothing."""
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        part = getattr(tokenizer, name)
        nodes = [] if part is None else list(_objects(json.loads(part.__getstate__())))
        if len(nodes) > MAX_STEPS:
            return f"{len(nodes)} parts in its {name}"
        growth = 1.0
        for node in nodes:
            ids = node.get("ids")
            if isinstance(ids, list) and len(ids) > MAX_STEPS:
                return f"{len(ids)} ids for one token in its {name}"
            rule = _GROWTH.get(str(node.get("type")))
            # ByteLevel and Metaspace shorten a text where they decode.
            if rule is not None and not (name == "decoder" and node["type"] != "Replace"):
                growth *= max(1.0, rule(node))
        if growth > MAX_GROWTH:
            return f"rules in its {name} that make a text more than {MAX_GROWTH} times as long"
    return None


def panicking_rule(tokenizer: "tokenizers.Tokenizer") -> str | None:
    """Name a rule over which Rust panics with some texts (tokenizers 0.23.3); None for none.

    What else a pattern does is not known beforehand: one that takes long in another way still panics.
    """
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        part = getattr(tokenizer, name)
        for node in [] if part is None else _objects(json.loads(part.__getstate__())):
            fault = _panic(name, node)
            if fault is not None:
                return f"a {name} {node.get('type')} {fault}"
    return None


def _panic(part: str, node: dict[str, object]) -> str | None:
    match part, node:
        # `transform_range`, where another normalizer follows.
        case ("normalizer", {"prepend": ""} | {"pattern": {"String": ""}}):
            return "of nothing"
        case "pre_tokenizer", {"type": "FixedLength", "length": 0}:
            return "of length 0"
        # `decode_chain` looks for characters before the first, in a piece that is too short.
        case "decoder", {"type": "Strip", "stop": int(stop)} if stop:
            return "that strips from the right"
        case _, {"pattern": {"Regex": str(pattern)}} if _backtracks(pattern):
            return "by a pattern that repeats what can be read in several ways"
    return None


def _backtracks(pattern: str) -> bool:
    """Whether a regular expression repeats without end a group that has a choice in it, such as `(a+)+`.

    The tries then double with each letter, and Onig gives up in a panic. Published tokenizers have none.
    """
    groups = [False]
    for found in _REGEX_PART.finditer(pattern):
        part, repeated = found[0], found["repeated"] or ""
        is_endless = repeated[:1] in ("*", "+") or ",}" in repeated
        if part.startswith("("):
            groups.append(False)
        elif part.startswith(")") and len(groups) > 1:
            has_choice = groups.pop()
            if has_choice and is_endless:
                return True
            groups[-1] |= has_choice or bool(repeated)
        else:
            groups[-1] |= part.startswith("|") or bool(repeated)
    return False


def undefined_token(processor: object) -> object | None:
    """Return a token that a template of the post-processor names without defining it, over which Rust would panic."""
    getstate = getattr(processor, "__getstate__", None)
    remaining: list[object] = [] if processor is None or getstate is None else [json.loads(getstate())]
    while remaining:
        match remaining.pop():
            case {"type": "Sequence", "processors": list(parts)}:
                remaining += parts
            case {"type": "TemplateProcessing", "single": list(single), "pair": list(pair), "special_tokens": defined}:
                for part in (*single, *pair):
                    match part:
                        case {"SpecialToken": {"id": token}} if token not in cast("dict[object, object]", defined):
                            return token
    return None


def charsmap_fault(data: bytes) -> str | None:
    """Say what is wrong with a `precompiled_charsmap` in a `tokenizer.json`, over which Rust would panic; or None."""
    for found in _CHARSMAP.finditer(data):
        if found[1] is None:
            return "is not text"
        try:
            fault = _fault(base64.b64decode(found[1], validate=True))
        except binascii.Error:
            fault = "is not base64"
        if fault:
            return fault
    return None


def sentencepiece_growth(data: bytes) -> float:
    """Return how many times as long the normalizers of a `tokenizer.model` can make a text."""
    growth = 1.0
    for field, spec in _fields(data):
        # ModelProto.normalizer_spec and denormalizer_spec, and NormalizerSpec.precompiled_charsmap.
        maps = [value for name, value in _fields(spec) if name == 2] if field in (3, 5) else []
        growth *= max([1.0, *map(_charsmap_growth, maps)])
    return growth


def _fault(charsmap: bytes) -> str | None:
    """Say why a charsmap could not be read, or would be left by a text: a double array, then strings that end in NUL.

    As spm_precompiled reads it: from a unit, a text's next byte goes to `place ^ offset ^ byte`, whatever stands there.
    """
    if len(charsmap) < 4:
        return "is empty"
    size = struct.unpack_from("<I", charsmap)[0] // 4
    if size == 0 or len(charsmap) < 4 + 4 * size:
        return "is cut off"
    units, strings = struct.unpack_from(f"<{size}I", charsmap, 4), charsmap[4 + 4 * size :]
    try:
        strings.decode("utf-8")
    except UnicodeDecodeError:
        return "has strings that are not UTF-8"
    for place, unit in enumerate(units):
        # A leaf, which only the first unit is not asked to be.
        if unit >> 31 and place:
            continue
        following = place ^ (unit >> 10) << ((unit & 1 << 9) >> 6)
        if following | 0xFF >= size:
            return "leads out of its table"
        value = units[following] & 0x7FFFFFFF
        if unit >> 8 & 1 and (value > len(strings) or (strings[value : value + 1] and 0x80 <= strings[value] < 0xC0)):
            return "leads out of its strings"
    return None


def _charsmap_growth(charsmap: bytes) -> float:
    """Return the length of the longest string that a charsmap can put for a character."""
    size = struct.unpack_from("<I", charsmap)[0] if len(charsmap) >= 4 else 0
    return max(map(_expanded, charsmap[4 + size :].decode("utf-8", errors="replace").split("\0")))


def _expanded(text: object) -> int:
    """Return how long a text can become by Unicode's normalizations, which bound themselves only once each."""
    return max(len(str(text)), len(unicodedata.normalize("NFKD", str(text))))


def _replace_growth(node: dict[str, object]) -> float:
    pattern = node.get("pattern")
    found = pattern.get("String") if isinstance(pattern, dict) else None
    # A regular expression may match nothing, beside every character.
    return _expanded(node.get("content")) / len(found) if found else 1 + _expanded(node.get("content"))


def _template_growth(node: dict[str, object]) -> float:
    return sum("Sequence" in part for part in cast("list[dict[str, object]]", node["single"]))


# How many times as long a step makes a text of one character, or a bound on it.
_GROWTH: dict[str, Callable[[dict[str, object]], float]] = {
    "Replace": _replace_growth,
    "Prepend": lambda node: 1 + _expanded(node.get("prepend")),
    "Precompiled": lambda node: _charsmap_growth(base64.b64decode(str(node["precompiled_charsmap"]))),
    # A character for each byte.
    "ByteLevel": lambda _: 4,
    "Metaspace": lambda _: 2,
    # Spaces around what is Chinese.
    "BertNormalizer": lambda _: 3,
    "TemplateProcessing": _template_growth,
}


def _objects(value: object) -> Iterator[dict[str, object]]:
    """Yield every object in a JSON value, however deep."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield cast("dict[str, object]", value)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the fields of a protocol buffer that hold bytes; ends where it is malformed."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                _, at = _varint(message, at)
            case 1:
                at += 8
            case 2:
                length, at = _varint(message, at)
                yield key >> 3, message[at : at + length]
                at += length
            case 5:
                at += 4
            case _:
                return


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        value |= (message[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not message[at - 1] & 0x80:
            break
    return value, at
