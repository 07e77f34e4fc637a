"""A checkpoint's tokenizer, put so that a host with SentencePiece and nothing else gets its ids and its text.

Where a checkpoint ships `tokenizer.model` only, that file is the tokenizer. Where `tokenizer.json` is followed (see
`tokenizer.py`), the bundle's `tokenizer.model` is made from it, and the manifest says what SentencePiece does not do:

A text loses the BOS that it spells at its beginning, if BOS is an added token, since one is put there. Then:

1. The text is cut at added tokens, leftmost and longest first; one with `single_word` counts only where no word
   character is beside it.
2. Each stretch between them gets `segment_prefix` in front.
3. That is cut at `literals`, pieces that `tokenizer.json` finds in a text and SentencePiece does not ("<0x41>").
4. What lies between is SentencePiece's, which adds no prefix of its own there.

Not stated, and so not followed: `tokenizer.json` spells out an "<unk>" in a text if a character beside it is unknown.

`BundleTokenizer` is that host, in Python: what the export checks itself with, and what other hosts can be read beside.
"""

import functools
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast, get_args

from helium_mlx.bundle.sentencepiece_model import PieceType, SentencePiece, unigram_model
from helium_mlx.errors import TokenizerError, one_line
from helium_mlx.tokenizer.detokenizer import (
    WORD_SEPARATOR,
    ByteFallbackDetokenizer,
    DummyPrefix,
    Piece,
    SentencePieceDetokenizer,
    StreamingDetokenizer,
)
from helium_mlx.tokenizer.tokenizer import JSON_FILE, SENTENCEPIECE_FILE, HeliumTokenizer, without_prefixes
from helium_mlx.tokenizer.vocabularies import content_finder, sentencepiece_piece

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_NEWLINE_BYTE = "<0x0A>"

# Steps of a piece's score in one unit of log-probability: sums up to 1,024 are exact in float32.
_SCORE_STEPS = 2**14

# What Rust's `regex`, which `tokenizers` asks, counts as part of a word (Unicode TR 18, annex C): these categories, the
# joiners, and letters in circles and squares, which are the only symbols that Unicode calls alphabetic.
_WORD_CATEGORIES = ("L", "M", "Nd", "Nl", "Pc")
_WORD_SYMBOLS = re.compile("[\u200c\u200d\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]")

# What Unicode 15 and 16 added to that, which Python before 3.13 does not know.
_NEW_WORDS = re.compile(
    "["
    "\u0897\u0cf3\u0ece\u1c89-\u1c8a\ua7cb-\ua7cd\ua7da-\ua7dc\U000105c0-\U000105f3\U00010d40-\U00010d65"
    "\U00010d69-\U00010d6d\U00010d6f-\U00010d85\U00010ec2-\U00010ec4\U00010efc-\U00010eff"
    "\U0001123f-\U00011241\U00011380-\U00011389\U0001138b\U0001138e\U00011390-\U000113b5"
    "\U000113b7-\U000113c0\U000113c2\U000113c5\U000113c7-\U000113ca\U000113cc-\U000113d3"
    "\U000113e1-\U000113e2\U000116d0-\U000116e3\U00011bc0-\U00011be0\U00011bf0-\U00011bf9"
    "\U00011f00-\U00011f10\U00011f12-\U00011f3a\U00011f3e-\U00011f42\U00011f50-\U00011f5a\U0001342f"
    "\U00013440-\U00013455\U00013460-\U000143fa\U00016100-\U00016139\U00016d40-\U00016d6c"
    "\U00016d70-\U00016d79\U00018cff\U0001b132\U0001b155\U0001ccf0-\U0001ccf9\U0001df25-\U0001df2a"
    "\U0001e030-\U0001e06d\U0001e08f\U0001e4d0-\U0001e4f9\U0001e5d0-\U0001e5fa\U0002b739"
    "\U0002ebf0-\U0002ee5d\U00031350-\U000323af"
    "]"
)


@dataclass(frozen=True)
class AddedToken:
    """A token that is found before the text is split into pieces. A special one leaves no trace in decoded text."""

    content: str
    id: int
    special: bool
    single_word: bool


@dataclass(frozen=True)
class TokenizerRecipe:
    """What the manifest says of the tokenizer: see the module's docstring.

    `strip` is how many spaces are dropped from the left of decoded text; None where SentencePiece's own decoder is
    followed, whose `dummy_prefix` says which separators it drops (see `tokenizer/detokenizer.py`).
    """

    follows: str
    segment_prefix: str
    added_tokens: tuple[AddedToken, ...]
    literals: dict[str, int]
    strip: int | None
    dummy_prefix: DummyPrefix

    def to_dict(self) -> dict[str, object]:
        """Return what stands in the manifest."""
        decoder: dict[str, object] = (
            {"kind": "sentencepiece", "dummy_prefix": self.dummy_prefix}
            if self.strip is None
            else {"kind": "byte_fallback", "strip": self.strip}
        )
        return {
            "follows": self.follows,
            "model": SENTENCEPIECE_FILE,
            "json": JSON_FILE if self.follows == JSON_FILE else None,
            "segment_prefix": self.segment_prefix,
            "decoder": decoder,
            "added_tokens": [asdict(token) for token in self.added_tokens],
            "literals": [{"content": content, "id": index} for content, index in self.literals.items()],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "TokenizerRecipe":
        """Return the recipe that `to_dict` gave. Raises TokenizerError for anything else."""
        match values:
            case {
                "model": "tokenizer.model",
                "follows": str(follows),
                "segment_prefix": str(prefix),
                "decoder": dict(decoder),
                "added_tokens": list(added),
                "literals": list(literals),
            }:
                strip, dummy_prefix = _decoder_of(decoder)
                tokens = tuple(map(_added_token, added))
                return cls(follows, prefix, tokens, dict(map(_literal, literals)), strip, dummy_prefix)
        raise TokenizerError("the manifest's tokenizer lacks one of its fields; export the bundle anew")


def _decoder_of(decoder: dict[str, object]) -> tuple[int | None, DummyPrefix]:
    match decoder:
        case {"kind": "byte_fallback", "strip": int(strip)}:
            return strip, "kept"
        case {"kind": "sentencepiece", "dummy_prefix": dummy_prefix} if dummy_prefix in get_args(DummyPrefix):
            return None, cast(DummyPrefix, dummy_prefix)
    raise TokenizerError("the manifest's tokenizer has an unknown decoder; export the bundle anew")


def _added_token(entry: object) -> AddedToken:
    match entry:
        case {"content": str(content), "id": int(index), "special": bool(special), "single_word": bool(single)} if (
            content
        ):
            return AddedToken(content, index, special, single)
    raise TokenizerError("the manifest's tokenizer has a malformed added token; export the bundle anew")


def _literal(entry: object) -> tuple[str, int]:
    match entry:
        case {"content": str(content), "id": int(index)} if content:
            return content, index
    raise TokenizerError("the manifest's tokenizer has a malformed literal; export the bundle anew")


def write_tokenizer(tokenizer: HeliumTokenizer, directory: Path) -> TokenizerRecipe:
    """Write a checkpoint's tokenizer into a bundle and return its recipe.

    Raises TokenizerError for a `tokenizer.json` with other steps than Helium's, which no recipe could state.
    """
    if tokenizer.is_extended:
        raise TokenizerError(
            f"{tokenizer.files[0].parent} declares tokens in a file beside its tokenizer's, which a bundle cannot "
            "state; add them to tokenizer.json itself"
        )
    source = next((path for path in tokenizer.files if path.name == JSON_FILE), None)
    if source is None:
        model_file = next(path for path in tokenizer.files if path.suffix == ".model")
        (directory / SENTENCEPIECE_FILE).write_bytes(model_file.read_bytes())
        detokenizer = cast(SentencePieceDetokenizer, tokenizer.detokenizer())
        return TokenizerRecipe(SENTENCEPIECE_FILE, "", (), {}, None, detokenizer.dummy_prefix)
    data = source.read_bytes()
    parsed = _HeliumJson(cast("dict[str, object]", json.loads(data)), source)
    special_ids = {"unk": parsed.unknown, "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    model = unigram_model(parsed.pieces(), special_ids | {"pad": tokenizer.pad_token_id})
    (directory / SENTENCEPIECE_FILE).write_bytes(model)
    (directory / JSON_FILE).write_bytes(data)
    return TokenizerRecipe(JSON_FILE, parsed.prefix, parsed.added, parsed.literals(), parsed.strip, "kept")


class _HeliumJson:
    """The parts of a `tokenizer.json` that is laid out as Helium's is; TokenizerError names what is not."""

    def __init__(self, values: dict[str, object], path: Path) -> None:
        self._path = path
        match values.get("model"):
            case {"type": "Unigram", "unk_id": int(unknown), "byte_fallback": True, "vocab": list(vocabulary)}:
                self.unknown = unknown
                self._vocabulary = cast("list[tuple[str, float]]", vocabulary)
            case _:
                raise self._unlike("model that is not a Unigram with byte fallback")
        match values.get("normalizer"):
            case {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Prepend", "prepend": str(prefix)},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                ],
            }:
                self.prefix = prefix
            case other:
                raise self._unlike(f"normalizer {other}")
        match values.get("decoder"):
            case {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": int(strip), "stop": 0},
                ],
            }:
                self.strip = strip
            case other:
                raise self._unlike(f"decoder {other}")
        self.added = tuple(map(self._added_token, cast("list[object]", values.get("added_tokens"))))
        self._check_pre_tokenizer(values.get("pre_tokenizer"))

    def pieces(self) -> list[SentencePiece]:
        """Return the vocabulary as SentencePiece has it, the newline being a byte again."""
        specials = {token.id for token in self.added if token.special}
        newline = self._newline()

        def piece(index: int, text: str, score: float) -> SentencePiece:
            if index == self.unknown:
                return SentencePiece(text, score, PieceType.UNKNOWN)
            if index in specials:
                return SentencePiece(text, score, PieceType.CONTROL)
            if index == newline:
                return SentencePiece(_NEWLINE_BYTE, score, PieceType.BYTE)
            return SentencePiece(text, score, PieceType.BYTE if _BYTE_PIECE.fullmatch(text) else PieceType.NORMAL)

        return [piece(index, text, _on_grid(score)) for index, (text, score) in enumerate(self._vocabulary)]

    def literals(self) -> dict[str, int]:
        """Return what the file finds in the middle of a text and SentencePiece does not, with its ids."""
        cut_before = {token.content for token in self.added if not token.single_word}
        return {
            text: index
            for index, ((text, _), piece) in enumerate(zip(self._vocabulary, self.pieces(), strict=True))
            if piece.type != PieceType.NORMAL and text not in cut_before
        }

    def _newline(self) -> int | None:
        """Return the id that stands for the byte 0x0A under the name of the character, as in Helium's files."""
        texts = [text for text, _ in self._vocabulary]
        return texts.index("\n") if "\n" in texts and _NEWLINE_BYTE not in texts else None

    def _added_token(self, entry: object) -> AddedToken:
        match entry:
            case {"normalized": False, "lstrip": False, "rstrip": False}:
                return _added_token(entry)
        raise self._unlike(f"added token {entry}")

    def _check_pre_tokenizer(self, pre_tokenizer: object) -> None:
        """Raise TokenizerError unless no text that is left to it could be split."""
        newline_is_added = any(token.content == "\n" and not token.single_word for token in self.added)
        match pre_tokenizer:
            case None:
                return
            case {
                "type": "Sequence",
                "pretokenizers": [{"type": "Split", "pattern": {"String": "\n"}, "behavior": "Contiguous"}],
            } if newline_is_added:
                return
        raise self._unlike(f"pre-tokenizer {pre_tokenizer}")

    def _unlike(self, what: str) -> TokenizerError:
        return TokenizerError(
            f"{self._path} has a {one_line(what, 200)}, unlike Helium's; a bundle cannot state it for SentencePiece"
        )


class BundleTokenizer:
    """Text to ids and back, from a bundle's `tokenizer.model` and recipe."""

    def __init__(self, model_file: Path, recipe: TokenizerRecipe, bos_token_id: int) -> None:
        import sentencepiece

        self._recipe = recipe
        self._bos = bos_token_id
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        self._added = {token.content: token for token in recipe.added_tokens}
        self._added_by_id = {token.id: token for token in recipe.added_tokens}
        self._find_added = content_finder(self._added)
        self._find_literal = content_finder(recipe.literals)
        spelled = [token.content for token in recipe.added_tokens if token.id == bos_token_id]
        self._spelled_bos = spelled[0] if spelled else ""

    def encode(self, text: str) -> list[int]:
        """Return one BOS and the ids of the text."""
        ids: list[int] = []
        if self._spelled_bos:
            text = without_prefixes(text, self._spelled_bos)
        for part, token in _cut(text, self._find_added, self._is_single):
            ids += [self._added[part].id] if token else self._encode_stretch(part)
        start = 0
        while start < len(ids) and ids[start] == self._bos:
            start += 1
        return [self._bos, *ids[start:]]

    def detokenizer(self) -> StreamingDetokenizer:
        """Return a fresh detokenizer; see `tokenizer/detokenizer.py`."""
        recipe = self._recipe
        if recipe.strip is None:
            return SentencePieceDetokenizer(
                functools.partial(sentencepiece_piece, self._processor), dummy_prefix=recipe.dummy_prefix
            )
        specials = frozenset(token.id for token in recipe.added_tokens if token.special)
        return ByteFallbackDetokenizer(self._json_piece, skipped=specials, strip_count=recipe.strip)

    def _encode_stretch(self, stretch: str) -> list[int]:
        ids: list[int] = []
        for part, literal in _cut(self._recipe.segment_prefix + stretch, self._find_literal, None):
            ids += [self._recipe.literals[part]] if literal else self._processor.Encode(part, out_type=int)
        return ids

    def _is_single(self, text: str, start: int, end: int) -> bool:
        """Whether an added token found at a place counts there."""
        if not self._added[text[start:end]].single_word:
            return True
        return not _is_word(text[:start][-1:]) and not _is_word(text[end : end + 1])

    def _json_piece(self, index: int) -> Piece:
        added = self._added_by_id.get(index)
        if added is not None:
            return added.content
        if index >= self._processor.GetPieceSize():
            return None
        piece = self._processor.IdToPiece(index)
        return int(piece[3:5], 16) if self._processor.IsByte(index) else piece.replace(WORD_SEPARATOR, " ")


def _on_grid(score: float) -> float:
    """Return a score that SentencePiece, which adds in float32, can add a hundred of without rounding.

    Segmentations of one score then stay so, and both libraries take the same; else rounding would pick one.
    """
    return round(score * _SCORE_STEPS) / _SCORE_STEPS


def _is_word(character: str) -> bool:
    if not character:
        return False
    known = unicodedata.category(character).startswith(_WORD_CATEGORIES)
    return known or bool(_WORD_SYMBOLS.match(character) or _NEW_WORDS.match(character))


def _cut(
    text: str, finder: re.Pattern[str] | None, counts: Callable[[str, int, int], bool] | None
) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a text, none of them empty, each with whether it is one that was looked for."""
    start = 0
    for found in finder.finditer(text) if finder is not None else ():
        if counts is not None and not counts(text, found.start(), found.end()):
            continue
        if found.start() > start:
            yield text[start : found.start()], False
        yield found[0], True
        start = found.end()
    if start < len(text):
        yield text[start:], False
