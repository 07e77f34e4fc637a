"""Token healing: a prompt that ends inside a word, or in a space, goes on as if it had been typed to its end.

"The capital of Fr" ends in the token "▁Fr", which no text that goes on with "ance" has: "▁France" is a token. So the
tokens of the last word, or of the spaces at the end, are cut off, and the first tokens that come are held to the bytes
of what was cut: each begins with all that is left of them, or they begin with it. What is then shown is what follows
the prompt, byte for byte, the space before a next word included.

Bytes are those of the pieces, so that it is the same for both kinds of tokenizer, and a character may be one token or
several. A word begins at a space or in a new line; where that is too far back, as in a script without spaces, the last
few tokens are cut.
"""

import unicodedata
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from itertools import islice, takewhile
from typing import cast
from weakref import WeakKeyDictionary

import mlx.core as mx

from helium_mlx.errors import GenerationError, shown
from helium_mlx.generation.completion import CompletionText, StopStrings
from helium_mlx.generation.sampling import Sampler, SamplingOptions
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

MOST_CUT = 8
"""Tokens that are cut off at most."""


def cut_back(tokenizer: HeliumTokenizer, tokens: Sequence[int]) -> int:
    """Return how many of the last tokens of a prompt to cut off: 0 where it does not end inside a word or in a space.

    The first token always stays, and tokens that are special.
    """
    # Those that may go, and the one before them.
    tokens = tokens[-(MOST_CUT + 1) :]
    if len(tokens) < 2:
        return 0
    pieces = [tokenizer.token_bytes(token) for token in tokens]
    is_text = [bool(piece) and token not in tokenizer.special_ids for token, piece in zip(tokens, pieces, strict=True)]
    start = len(tokens)
    while start > 1 and is_text[start - 1] and not pieces[start - 1].strip(b" "):
        start -= 1
    if start < len(tokens):
        return len(tokens) - start
    if not is_text[-1] or not _ends_inside_word(b"".join(pieces)):
        return 0
    while start > 1 and is_text[start - 1] and pieces[start - 1].strip():
        start -= 1
        if pieces[start].startswith(b" "):
            break
    else:
        # Of some words the space before them is a token of its own.
        start -= start > 1 and is_text[start - 1] and not pieces[start - 1].strip(b" ")
    # What comes first must not begin inside a character: its beginning could not be taken back.
    while start < len(tokens) and _is_inside_character(pieces[start]):
        start += 1
    return len(tokens) - start


def _ends_inside_word(data: bytes) -> bool:
    """Return whether the last character of UTF-8, which may be cut off itself, is a letter or a digit."""
    text = data.decode(errors="ignore")
    is_cut = text.encode() != data[-len(text.encode()) :] if text else bool(data)
    # A mark belongs to the letter before it.
    return is_cut or text[-1:].isalnum() or unicodedata.category(text[-1]).startswith("M")


def _is_inside_character(piece: bytes) -> bool:
    return bool(piece) and 0x80 <= piece[0] < 0xC0


class _Pieces:
    """The tokens of a tokenizer that are text, by their bytes."""

    def __init__(self, tokenizer: HeliumTokenizer) -> None:
        left_out = tokenizer.special_ids | tokenizer.reserved_ids
        self.ids: dict[bytes, list[int]] = {}
        for index in range(len(tokenizer)):
            piece = b"" if index in left_out else tokenizer.token_bytes(index)
            # A space that is spelled as a byte is not dropped where a text begins, as that of a word is.
            if piece and not (piece == b" " and tokenizer.convert_ids_to_tokens(index) == "<0x20>"):
                self.ids.setdefault(piece, []).append(index)
        self._sorted = sorted(self.ids)

    def within(self, text: bytes) -> Iterator[bytes]:
        """Yield the pieces that `text` begins with, itself left out."""
        return (text[:length] for length in range(1, len(text)) if text[:length] in self.ids)

    def starting(self, text: bytes) -> Iterator[bytes]:
        """Yield the pieces that begin with `text`."""
        following = islice(self._sorted, bisect_left(self._sorted, text), None)
        return takewhile(lambda piece: piece.startswith(text), following)


# Made once for each tokenizer: a pass over its vocabulary takes longer than a token.
_pieces: WeakKeyDictionary[HeliumTokenizer, _Pieces] = WeakKeyDictionary()


class HeldBytes:
    """What the next tokens have to begin with, fewer bytes with each of them. Tokens of `banned` do not come."""

    def __init__(
        self, tokenizer: HeliumTokenizer, vocab_size: int, cut: Sequence[int], banned: Collection[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._banned = {*banned, *tokenizer.eos_token_ids}
        if tokenizer not in _pieces:
            _pieces[tokenizer] = _Pieces(tokenizer)
        self._pieces = _pieces[tokenizer]
        self.left = b"".join(map(tokenizer.token_bytes, cut))

    def fitting(self) -> list[int]:
        """Return the tokens that may come: those from which the text can go on as it has to."""
        pieces, held = self._pieces, self.left
        leads = {len(held)}
        for start in range(len(held) - 1, 0, -1):
            rest = held[start:]
            shorter = (piece for piece in pieces.within(rest) if start + len(piece) in leads)
            if any(map(self._allowed, shorter)) or any(map(self._allowed, pieces.starting(rest))):
                leads.add(start)
        first = (piece for piece in pieces.within(held) if len(piece) in leads)
        return [index for piece in (*first, *pieces.starting(held)) for index in self._allowed(piece)]

    def mask(self) -> mx.array:
        """Return which tokens may come, bool (1, vocab_size).

        Raises GenerationError where none may, which only bans can bring about.
        """
        fitting = self.fitting()
        if not fitting:
            raise GenerationError(
                f"heal: no token that is not banned begins with {shown(self.left.decode(errors='replace'))}, the end "
                "of the prompt; leave out banned_ids, or heal"
            )
        may_come = bytearray(self._vocab_size)
        for index in fitting:
            may_come[index] = 1
        return mx.array(memoryview(may_come).cast("?"))[None]  # pyright: ignore[reportArgumentType]

    def take(self, token: int) -> None:
        """Take a token that has come."""
        self.left = self.left[len(self._tokenizer.token_bytes(token)) :]

    def _allowed(self, piece: bytes) -> list[int]:
        return [index for index in self._pieces.ids[piece] if index < self._vocab_size and index not in self._banned]


class HealedSampler(Sampler):
    """A sampler whose first tokens begin with what was cut off a prompt: it waits for each of them."""

    def __init__(
        self,
        held: HeldBytes,
        options: SamplingOptions,
        prompt: mx.array,
        *,
        vocab_size: int,
        reserved_ids: Collection[int] = (),
        generated: Sequence[int] = (),
    ) -> None:
        super().__init__(options, prompt, vocab_size=vocab_size, reserved_ids=reserved_ids, generated=generated)
        for token in generated:
            held.take(token)
        self._held = held
        self._newest: mx.array | None = None

    @property
    def is_held(self) -> bool:
        """Whether a token before the next one, or the next one, is held."""
        return bool(self._held.left)

    @property
    def takes_best(self) -> bool:
        """Whether the token is the argmax of the logits as they are: no, while one is held."""
        return not self.is_held and super().takes_best

    def among(self, logits: mx.array) -> mx.array:
        """Return logits, (1, vocab_size) while a token is held, with minus infinity for those that cannot come.

        Raises GenerationError where none can.
        """
        if self._newest is not None:
            self._held.take(cast(int, self._newest.item()))
            self._newest = None
        return mx.where(self._held.mask(), logits, -mx.inf) if self.is_held else logits

    def take(self, tokens: mx.array) -> None:
        """Continue after `tokens`, integers (K,); one that is held comes alone."""
        super().take(tokens)
        if self.is_held:
            self._newest = tokens


class HealedText(CompletionText):
    """The text after a prompt whose last tokens were cut off, with the space that comes first, if one does."""

    def __init__(
        self,
        tokenizer: HeliumTokenizer,
        stops: StopStrings,
        eos: frozenset[int],
        kept: Sequence[int],
        cut: Sequence[int],
    ) -> None:
        super().__init__(tokenizer, stops, eos)
        self.detokenizer = _Following(tokenizer, kept, cut)

    @property
    def leading_space(self) -> bool:
        """Whether the text leaves out a space: never."""
        return False


class _Following:
    """A detokenizer that goes on after the tokens `kept` and leaves out as much text as those of `cut` have."""

    def __init__(self, tokenizer: HeliumTokenizer, kept: Sequence[int], cut: Sequence[int]) -> None:
        self._detokenizer, of_prompt = tokenizer.detokenizer(), tokenizer.detokenizer()
        for token in _since_settled(tokenizer, kept):
            self._detokenizer.add_token(token)
            of_prompt.add_token(token)
        self._left_out = sum(len(of_prompt.add_token(token)) for token in cut)

    def add_token(self, token: int) -> str:
        return self._shown(self._detokenizer.add_token(token))

    def finish(self) -> str:
        return self._shown(self._detokenizer.finish())

    def _shown(self, text: str) -> str:
        shown = text[self._left_out :]
        self._left_out -= len(text) - len(shown)
        return shown


def _since_settled(tokenizer: HeliumTokenizer, tokens: Sequence[int]) -> Sequence[int]:
    """Return the last tokens that leave a detokenizer as all of them do: those from the last one that is text.

    Not a space, which may be one that is dropped where a text begins, nor a part of a character.
    """
    for start in range(len(tokens) - 1, 0, -1):
        if tokens[start] not in tokenizer.special_ids and _is_text(tokenizer.token_bytes(tokens[start])):
            return tokens[start:]
    return tokens


def _is_text(piece: bytes) -> bool:
    return bool(piece.strip(b" ")) and piece.decode(errors="ignore").encode() == piece
