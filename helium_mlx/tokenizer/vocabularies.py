"""The two files that a tokenizer is read from, under one interface: `tokenizer.json` and `tokenizer.model`."""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, cast

from helium_mlx.errors import TokenizerError, one_line, shown
from helium_mlx.files.untrusted import FileProblem, read_bytes
from helium_mlx.tokenizer.bounds import (
    MAX_GROWTH,
    charsmap_fault,
    excess,
    panicking_rule,
    sentencepiece_growth,
    undefined_token,
)
from helium_mlx.tokenizer.declared import NOTHING_DECLARED, Declared, DeclaredToken
from helium_mlx.tokenizer.detokenizer import (
    WORD_SEPARATOR,
    ByteFallbackDetokenizer,
    DummyPrefix,
    MetaspaceDetokenizer,
    Piece,
    SentencePieceDetokenizer,
    StreamingDetokenizer,
)

if TYPE_CHECKING:
    import sentencepiece


# Where a library put it, `detokenizer.py` decodes the bytes anew.
_REPLACEMENT = "\ufffd"

# Helium's have 3.5 MB and 0.8 MB.
MAX_TOKENIZER_BYTES = 64_000_000

# Rust's u8::from_str_radix, which ByteFallback reads the two digits with, takes a plus sign too.
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")


class _FallbackSteps(NamedTuple):
    """Helium's decoder: what it replaces in every piece, and what it strips from the left of the whole text."""

    replacements: list[tuple[str, str]]
    strip: str
    strip_count: int


class _MetaspaceStep(NamedTuple):
    """The decoder Metaspace; `drops` says whether the first piece loses its separators."""

    separator: str
    drops: bool


_Decoder = _FallbackSteps | _MetaspaceStep | Literal["ByteLevel"]


class Vocabulary(Protocol):
    """What a tokenizer is built on: pieces, their ids, and the text that they make."""

    size: int
    base_size: int
    is_extended: bool
    """Whether tokens are declared beside the file that it does not have itself."""
    special_ids: frozenset[int]
    """The ids that decoding can leave out."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of a text. Raises TokenizerError where the file's rules fail on it."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of ids below `size`."""
        ...

    def library_text(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of ids below `size` as the file's library gives it, with what it makes of broken UTF-8."""
        ...

    def token(self, index: int) -> str | None:
        """Return the token of an id as the file spells it; None where the id has none."""
        ...

    def index(self, token: str) -> int | None:
        """Return the id of a token; None for a text that is not a token."""
        ...

    def tokens(self) -> Iterable[tuple[str, int]]:
        """Return every token with its id."""
        ...

    def piece(self, index: int) -> Piece:
        """Return what an id stands for in a text; see `detokenizer.Piece`."""
        ...

    def detokenizer(self, piece_of: Callable[[int], Piece], *, skip_special_tokens: bool) -> StreamingDetokenizer:
        """Return a new detokenizer of this file's rules. Raises TokenizerError for rules that cannot be streamed."""
        ...


class JsonVocabulary:
    """`tokenizer.json`, read by `tokenizers`."""

    def __init__(self, path: Path, declared: Declared = NOTHING_DECLARED) -> None:
        import tokenizers

        self._path = path
        data = _read_tokenizer(path)
        fault = charsmap_fault(data)
        if fault is not None:
            raise TokenizerError(f"{path} has a precompiled_charsmap that {fault}; fetch it again")
        # Nothing nests deep: its parser stops at 128 levels.
        with _named_failures(f"{path} is not a tokenizer"):
            self._tokenizer: tokenizers.Tokenizer = tokenizers.Tokenizer.from_buffer(data)
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = declared.split_special_tokens
        found = excess(self._tokenizer) or panicking_rule(self._tokenizer)
        if found is not None:
            raise TokenizerError(f"{path} has {found}, which no Helium's has; fetch it again")
        # Their texts are normalized here.
        with _named_failures(f"{path} has a normalizer that fails"):
            self.is_extended = self._add(declared) or declared.split_special_tokens
        undefined = undefined_token(self._tokenizer.post_processor)
        if undefined is not None:
            raise TokenizerError(
                f"{path} has a post-processor that fails: it names the token {shown(undefined)} without defining it; "
                "fetch it again"
            )
        # What fails at every text fails here, not at the first prompt.
        with _named_failures(f"{path} has a post-processor that fails"):
            self._tokenizer.encode("")
        self.special_ids = self._skipped_ids()
        self.base_size = self._tokenizer.get_vocab_size(with_added_tokens=False)
        self.size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._piece_of = functools.cache(self._read_piece)

    def _add(self, declared: Declared) -> bool:
        """Add what is declared beside the file, as transformers does, and say whether that changed anything."""
        from tokenizers import AddedToken

        own = self._tokenizer.get_added_tokens_decoder()
        before, known = {index: repr(token) for index, token in own.items()}, {each.content for each in own.values()}
        numbered: dict[int, DeclaredToken | AddedToken] = {
            token.id: token for token in declared.tokens if token.id is not None
        }
        if not declared.is_numbered:
            numbered |= own
        added = [token for _, token in sorted(numbered.items(), key=lambda entry: entry[0])]
        known |= {token.content for token in added}
        added += [token for token in declared.tokens if token.id is None and token.content not in known]
        self._tokenizer.add_tokens(
            [
                AddedToken(
                    token.content,
                    special=token.special or token.content in declared.named,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    single_word=token.single_word,
                    normalized=token.normalized,
                )
                for token in added
            ]
        )
        return before != {index: repr(token) for index, token in self._tokenizer.get_added_tokens_decoder().items()}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        with _named_failures(f"{self._path} cannot encode a text"):
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        text = self.library_text(ids, skip_special_tokens=skip_special_tokens)
        if _REPLACEMENT not in text or isinstance(self._decoder, dict):
            return text
        return _streamed(self.detokenizer(self.piece, skip_special_tokens=skip_special_tokens), ids)

    def library_text(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        skipped = self.special_ids if skip_special_tokens else frozenset[int]()
        if all(index in skipped or self.token(index) is None for index in ids):
            # Decoders look at the first piece, and there is none.
            return ""
        with _named_failures(f"{self._path} cannot decode ids"):
            return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def token(self, index: int) -> str | None:
        return self._tokenizer.id_to_token(index)

    def index(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def tokens(self) -> Iterable[tuple[str, int]]:
        return self._tokenizer.get_vocab(with_added_tokens=True).items()

    def _skipped_ids(self) -> frozenset[int]:
        from tokenizers import decoders

        added = self._tokenizer.get_added_tokens_decoder()
        special = frozenset(index for index, token in added.items() if token.special)
        if not self.is_extended and not any(added[index].normalized for index in special):
            return special
        # Flags do not say: `tokenizers` shows special tokens that it looks for in normalized text, and skips those that
        # were once special. So it is asked, without the decoder, which may fail at nothing.
        decoder, self._tokenizer.decoder = self._tokenizer.decoder, decoders.Fuse()
        skipped = frozenset(index for index in added if not self._tokenizer.decode([index]))
        self._tokenizer.decoder = decoder
        return skipped

    def detokenizer(self, piece_of: Callable[[int], Piece], *, skip_special_tokens: bool) -> StreamingDetokenizer:
        skipped = self.special_ids if skip_special_tokens else frozenset[int]()
        match self._decoder:
            case _FallbackSteps(_, strip, count):
                return ByteFallbackDetokenizer(piece_of, skipped=skipped, strip=strip, strip_count=count)
            case _MetaspaceStep(separator, drops):
                return MetaspaceDetokenizer(piece_of, skipped=skipped, separator=separator, drops=drops)
            case "ByteLevel":
                return ByteFallbackDetokenizer(piece_of, skipped=skipped, strip_count=0)
            case unknown:
                raise TokenizerError(
                    f"{self._path} has the decoder {one_line(json.dumps(unknown), 300)}, which cannot be streamed; "
                    "expected Replace, ByteFallback, Fuse and Strip on the left, as Helium has, or Metaspace or "
                    "ByteLevel; use decode() on the whole text"
                )

    def piece(self, index: int) -> Piece:
        return self._piece_of(index)

    def _read_piece(self, index: int) -> Piece:
        token = self._tokenizer.id_to_token(index)
        if token is None or not isinstance(self._decoder, _FallbackSteps):
            return _level_bytes(token) if token is not None and self._decoder == "ByteLevel" else token
        for old, new in self._decoder.replacements:
            token = token.replace(old, new)
        byte = _BYTE_PIECE.fullmatch(token)
        return token if byte is None else int(byte[1], 16)

    @functools.cached_property
    def _decoder(self) -> _Decoder | dict[str, object]:
        """The decoder's steps, or the decoder as the file has it: to be exact about one means to know it."""
        decoder = self._tokenizer.decoder
        state: dict[str, object] = {} if decoder is None else json.loads(decoder.__getstate__())
        remaining: object = state.get("decoders", [state])
        replacements: list[tuple[str, str]] = []
        while True:
            match remaining:
                case [{"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}, *rest] if old:
                    replacements.append((old, new))
                    remaining = rest
                case [{"type": "ByteFallback"}, {"type": "Fuse"}]:
                    return _FallbackSteps(replacements, strip=" ", strip_count=0)
                case [
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                    {"type": "Strip", "content": str(strip), "start": int(count), "stop": 0},
                ]:
                    return _FallbackSteps(replacements, strip, count)
                case [{"type": "ByteLevel"}] if not replacements:
                    return "ByteLevel"
                case [{"type": "Metaspace", "replacement": str(separator), "prepend_scheme": scheme}] if (
                    not replacements
                ):
                    return _MetaspaceStep(separator, drops=scheme != "never")
                case _:
                    return state


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """The bytes that ByteLevel's characters stand for: GPT-2's `bytes_to_unicode`, the other way round."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _level_bytes(token: str) -> bytes:
    """The bytes of a ByteLevel piece; one with a character that stands for no byte, such as an added token, is text."""
    known = _byte_of_character()
    return bytes(known[c] for c in token) if all(c in known for c in token) else token.encode()


def _streamed(detokenizer: StreamingDetokenizer, ids: Sequence[int]) -> str:
    return "".join([*map(detokenizer.add_token, ids), detokenizer.finish()])


def sentencepiece_piece(processor: "sentencepiece.SentencePieceProcessor", index: int) -> Piece:
    """Return what an id of a SentencePiece model stands for; see `detokenizer.Piece`."""
    if index >= processor.GetPieceSize():
        return None
    if processor.IsControl(index):
        return ""
    if processor.IsUnknown(index):
        return processor.Decode([index])
    piece = processor.IdToPiece(index)
    return int(piece[3:5], 16) if processor.IsByte(index) else piece


class SentencePieceVocabulary:
    """`tokenizer.model`, read by `sentencepiece`."""

    def __init__(self, path: Path, declared: Declared = NOTHING_DECLARED) -> None:
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor()
        data = _read_tokenizer(path)
        if sentencepiece_growth(data) > MAX_GROWTH:
            raise TokenizerError(
                f"{path} has rules in its normalizer that make a text more than {MAX_GROWTH} times as long, which no "
                "Helium's has; fetch it again"
            )
        with _named_failures(f"{path} is not a SentencePiece model"):
            self._processor.LoadFromSerializedProto(data)
            self.base_size = self.size = self._processor.GetPieceSize()
            # Pieces and the surface of <unk> are bytes in the file; what is not UTF-8 fails here, not in a text.
            self._processor.IdToPiece(list(range(self.size)))
            self._processor.Decode([self._processor.unk_id()])
        # A name alone is not a token: a control symbol is never read from a text.
        added = {token.content: token for token in declared.tokens if token.id is not None}
        self._added = {token.content: cast(int, token.id) for token in added.values()}
        self._added_by_id = {index: content for content, index in self._added.items()}
        self._added_special = frozenset(self._added[token.content] for token in added.values() if token.special)
        self._find_added = content_finder(self._added)
        self.size = max([self.size, *(index + 1 for index in self._added_by_id)])
        self.is_extended = bool(added)
        controls = frozenset(index for index in range(self.base_size) if self._processor.IsControl(index))
        self.special_ids = (controls - self._added_by_id.keys()) | self._added_special
        self._piece_of = functools.cache(self._read_piece)

    def _read_piece(self, index: int) -> Piece:
        return self._added_by_id.get(index, sentencepiece_piece(self._processor, index))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if self._find_added is None:
            return self._processor.Encode(text, out_type=int)
        ids, start = list[int](), 0
        for found in self._find_added.finditer(text):
            ids += [*self._processor.Encode(text[start : found.start()], out_type=int), self._added[found[0]]]
            start = found.end()
        return ids + self._processor.Encode(text[start:], out_type=int)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        if self._added_by_id.keys().isdisjoint(ids):
            text = self.library_text(ids, skip_special_tokens=skip_special_tokens)
            if _REPLACEMENT not in text:
                return text
        return _streamed(self.detokenizer(self.piece, skip_special_tokens=skip_special_tokens), ids)

    def library_text(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        if not self._added_by_id.keys().isdisjoint(ids):
            return self.decode(ids, skip_special_tokens=skip_special_tokens)
        known = [index for index in ids if index < self.base_size]
        return self._processor.Decode(known) if known else ""

    def token(self, index: int) -> str | None:
        if index in self._added_by_id:
            return self._added_by_id[index]
        return self._processor.IdToPiece(index) if index < self.base_size else None

    def index(self, token: str) -> int | None:
        if token in self._added:
            return self._added[token]
        index = self._processor.PieceToId(token)
        return index if self._processor.IdToPiece(index) == token else None

    def tokens(self) -> Iterable[tuple[str, int]]:
        pieces = ((self._processor.IdToPiece(index), index) for index in range(self.base_size))
        return (*((piece, index) for piece, index in pieces if index not in self._added_by_id), *self._added.items())

    def detokenizer(self, piece_of: Callable[[int], Piece], *, skip_special_tokens: bool) -> StreamingDetokenizer:
        silent = self._added_special if skip_special_tokens else frozenset[int]()
        # Like a control symbol, which is never written.
        shown = (lambda index: "" if index in silent else piece_of(index)) if silent else piece_of
        return SentencePieceDetokenizer(shown, dummy_prefix=self._dummy_prefix)

    def piece(self, index: int) -> Piece:
        return self._piece_of(index)

    @functools.cached_property
    def _dummy_prefix(self) -> DummyPrefix:
        """What the model's normalizer makes of leading separators, which sentencepiece shows only in its results."""
        separator = self._processor.PieceToId(WORD_SEPARATOR)
        if self._processor.IdToPiece(separator) == WORD_SEPARATOR:
            kept = len(self._processor.Decode([separator, separator]))
            return "every" if kept == 0 else "first" if kept == 1 else "kept"
        # No piece is a separator alone, so no second piece can lose one: only the first can, or none does.
        for index in range(self.base_size):
            token = self._processor.IdToPiece(index)
            if token.startswith(WORD_SEPARATOR):
                return "kept" if len(self._processor.Decode([index])) == len(token) else "first"
        return "kept"


def content_finder(contents: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds the leftmost of `contents`, of those that begin there the longest; None for none."""
    longest_first = sorted(contents, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _read_tokenizer(path: Path) -> bytes:
    try:
        return read_bytes(path, MAX_TOKENIZER_BYTES)
    except FileProblem as problem:
        raise TokenizerError(f"{path} {problem}") from None


@contextmanager
def _named_failures(what: str) -> Iterator[None]:
    """Turn what a tokenizer library makes of a malformed file into one line that begins with `what`."""
    try:
        yield
    except BaseException as error:
        # `tokenizers` raises bare Exceptions; a panic in Rust derives from BaseException, and cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what}: {one_line(str(error), 300)}; fetch it again") from error
