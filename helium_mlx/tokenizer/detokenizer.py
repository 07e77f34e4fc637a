"""Token ids to text, one token at a time, in time linear in their number.

Whatever the ids, the pieces joined are exactly what `HeliumTokenizer.decode` gives for all of them at once.
`tokenizers.decoders.DecodeStream` is not used: it raises where an invalid byte follows a complete character, drops what
is unfinished at the end, and decodes a run of invalid bytes again at every byte.

Text is handed out when no later token can change it. Words are certain at once; bytes are not, and the two tokenizer
files disagree about them, so there are two detokenizers:

- `tokenizer.json` decodes a run of byte tokens as a whole. One invalid byte anywhere turns every byte of the run into
  its own U+FFFD, so even a complete emoji waits for the token after its run, or for `finish`.
- `tokenizer.model` decodes a run character by character, so a character appears with its last byte.
"""

import codecs
from collections.abc import Callable
from typing import Literal, Protocol

Piece = str | int | None
"""What one id stands for: text, one raw byte, or nothing."""


WORD_SEPARATOR = "▁"
_REPLACEMENT = "\ufffd"
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
    """The decoder of Helium's `tokenizer.json`: Replace, ByteFallback, Fuse, Strip on the left.

    `piece_of` has done the Replace; `skipped` ids leave no trace, so they do not end a run of bytes.
    """

    def __init__(
        self, piece_of: Callable[[int], Piece], *, skipped: frozenset[int], strip: str = " ", strip_count: int = 1
    ) -> None:
        self._piece_of = piece_of
        self._skipped = skipped
        self._strip = strip
        self._strip_count = strip_count
        self._left_to_strip = strip_count
        self._start_run()

    def add_token(self, token: int) -> str:
        """See `StreamingDetokenizer.add_token`."""
        piece = self._piece_of(token)
        if piece is None or token in self._skipped:
            return ""
        if isinstance(piece, int):
            return self._stripped(self._add_byte(piece))
        return self._stripped(self._end_run() + piece)

    def finish(self) -> str:
        """See `StreamingDetokenizer.finish`."""
        text = self._stripped(self._end_run())
        self._left_to_strip = self._strip_count
        return text

    def _start_run(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._characters: list[str] = []
        self._n_bytes = 0
        self._invalid = False

    def _add_byte(self, byte: int) -> str:
        if self._invalid:
            return _REPLACEMENT
        self._n_bytes += 1
        try:
            self._characters.append(self._utf8.decode(bytes((byte,))))
        except UnicodeDecodeError:
            self._invalid = True
            return _REPLACEMENT * self._n_bytes
        return ""

    def _end_run(self) -> str:
        if self._n_bytes == 0:
            return ""
        text = ""
        if not self._invalid:
            try:
                text = "".join(self._characters) + self._utf8.decode(b"", final=True)
            except UnicodeDecodeError:
                text = _REPLACEMENT * self._n_bytes
        self._start_run()
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
        self._pending = bytearray()

    def add_token(self, token: int) -> str:
        """See `StreamingDetokenizer.add_token`."""
        piece = self._piece_of(token)
        if piece is None:
            return ""
        if isinstance(piece, int):
            self._pending.append(piece)
            return self._started(self._take_characters(final=False))
        text = self._started(self._take_characters(final=True))
        if self._at_start and piece.startswith(WORD_SEPARATOR):
            piece = piece[1:]
            self._at_start = self.dummy_prefix == "every"
        return text + self._started(piece.replace(WORD_SEPARATOR, " "))

    def finish(self) -> str:
        """See `StreamingDetokenizer.finish`."""
        text = self._take_characters(final=True)
        self._at_start = self.dummy_prefix != "kept"
        return text

    def _started(self, text: str) -> str:
        if text:
            self._at_start = False
        return text

    def _take_characters(self, *, final: bool) -> str:
        """Every character that the pending bytes settle; an invalid byte is one U+FFFD and is left behind alone."""
        characters: list[str] = []
        while self._pending:
            length = _sequence_length(self._pending[0])
            if len(self._pending) < length and not final:
                break
            try:
                characters.append(self._pending[:length].decode("utf-8"))
            except UnicodeDecodeError:
                characters.append(_REPLACEMENT)
                length = 1
            del self._pending[:length]
        return "".join(characters)


def _sequence_length(lead: int) -> int:
    """How many bytes the UTF-8 sequence with this first byte has; 1 where none begins with it."""
    if lead >= 0xF8 or lead < 0xC0:
        return 1
    return 4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2
