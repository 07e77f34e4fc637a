"""Token ids to text, one token at a time, in time linear in their number.

Whatever the ids, the pieces joined are exactly what `HeliumTokenizer.decode` gives for all of them at once.
`tokenizers.decoders.DecodeStream` is not used: it raises where an invalid byte follows a complete character, and drops
what is unfinished at the end.

Text is handed out when no later token can change it: words with their token, characters spelled in bytes with their
last byte. Bytes that are not UTF-8 become U+FFFD as in Python's `errors="replace"`, one for each beginning of a
character that breaks off. Both libraries do worse: `tokenizers` turns every byte of a run with one bad byte in it into
U+FFFD, so that a text cut inside a character would lose the whole run; `sentencepiece` gives one for each bad byte.
"""

import codecs
from collections.abc import Callable
from typing import Literal, Protocol

Piece = str | int | bytes | None
"""What one id stands for: text, one raw byte, bytes of which a character may need several pieces, or nothing."""


WORD_SEPARATOR = "▁"
DummyPrefix = Literal["kept", "first", "every"]
"""Which separators SentencePiece drops while there is no text yet: none, the first one, or one from every piece."""


class StreamingDetokenizer(Protocol):
    """Turns ids into text as they come; `finish` gives the rest and starts over."""

    def add_token(self, token: int) -> str:
        """Return the text that has become certain with this id, possibly none.

        Raises TokenizerError if the id is out of range.
        """
        ...

    def finish(self) -> str:
        """Return the text that was still open; the next `add_token` begins a new text."""
        ...


class ByteFallbackDetokenizer:
    """The decoder of Helium's `tokenizer.json`: Replace, ByteFallback, Fuse, Strip on the left; ByteLevel too.

    `piece_of` has done the Replace, or turned a ByteLevel piece into its bytes. `skipped` ids leave no trace, so they
    do not end a run of bytes.
    """

    def __init__(
        self, piece_of: Callable[[int], Piece], *, skipped: frozenset[int], strip: str = " ", strip_count: int = 1
    ) -> None:
        self._piece_of = piece_of
        self._skipped = skipped
        self._strip = strip
        self._strip_count = strip_count
        self._left_to_strip = strip_count
        self._utf8 = _utf8_decoder()

    def add_token(self, token: int) -> str:
        """See `StreamingDetokenizer.add_token`."""
        piece = self._piece_of(token)
        if piece is None or token in self._skipped:
            return ""
        if not isinstance(piece, str):
            return self._stripped(self._utf8.decode(_as_bytes(piece)))
        return self._stripped(self._utf8.decode(b"", final=True) + piece)

    def finish(self) -> str:
        """See `StreamingDetokenizer.finish`."""
        text = self._stripped(self._utf8.decode(b"", final=True))
        self._left_to_strip = self._strip_count
        return text

    def _stripped(self, text: str) -> str:
        while self._left_to_strip and text:
            if text[0] != self._strip:
                self._left_to_strip = 0
                break
            text = text[1:]
            self._left_to_strip -= 1
        return text


class SentencePieceDetokenizer:
    """SentencePiece's own decoder (`SentencePieceProcessor::Decode`).

    `piece_of` gives control symbols as "", which end a run of bytes, and keeps the word separators.
    """

    def __init__(self, piece_of: Callable[[int], Piece], *, dummy_prefix: DummyPrefix) -> None:
        self._piece_of = piece_of
        self.dummy_prefix: DummyPrefix = dummy_prefix
        self._at_start = dummy_prefix != "kept"
        self._utf8 = _utf8_decoder()

    def add_token(self, token: int) -> str:
        """See `StreamingDetokenizer.add_token`."""
        piece = self._piece_of(token)
        if piece is None:
            return ""
        if not isinstance(piece, str):
            return self._started(self._utf8.decode(_as_bytes(piece)))
        text = self._started(self._utf8.decode(b"", final=True))
        if self._at_start and piece.startswith(WORD_SEPARATOR):
            piece = piece[1:]
            self._at_start = self.dummy_prefix == "every"
        return text + self._started(piece.replace(WORD_SEPARATOR, " "))

    def finish(self) -> str:
        """See `StreamingDetokenizer.finish`."""
        text = self._utf8.decode(b"", final=True)
        self._at_start = self.dummy_prefix != "kept"
        return text

    def _started(self, text: str) -> str:
        if text:
            self._at_start = False
        return text


class MetaspaceDetokenizer:
    """The decoder Metaspace: separators are spaces, but for those of the first piece, which are dropped if `drops`."""

    def __init__(
        self, piece_of: Callable[[int], Piece], *, skipped: frozenset[int], separator: str, drops: bool
    ) -> None:
        self._piece_of = piece_of
        self._skipped = skipped
        self._separator = separator
        self._drops = drops
        self._at_start = True

    def add_token(self, token: int) -> str:
        """See `StreamingDetokenizer.add_token`."""
        piece = self._piece_of(token)
        if not isinstance(piece, str) or token in self._skipped:
            return ""
        space = "" if self._at_start and self._drops else " "
        self._at_start = False
        return piece.replace(self._separator, space)

    def finish(self) -> str:
        """See `StreamingDetokenizer.finish`."""
        self._at_start = True
        return ""


def _as_bytes(piece: int | bytes) -> bytes:
    return piece if isinstance(piece, bytes) else bytes((piece,))


def _utf8_decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")
