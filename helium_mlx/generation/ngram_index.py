"""Where the end of a text occurred before: an index of n-grams that grows with the text.

For each length in `SIZES` a table says where each n-gram last ended. A match, once found, is followed token by token
and measured, so that it may be longer than any table's. Deviates from a suffix automaton, which finds the longest match
always: here a match of `SIZES[0]` tokens is the most recent one, though an older one may reach further back. In return
the most recent occurrence, which an automaton can not keep at constant cost, is the one that is followed.

A match of at least `SUBSTITUTABLE` tokens is also followed past one token that differs, if the text then ends in
nothing that occurred before: a story told again with another name is followed past the name.

A token costs at most two look-ups a table and `REACH` comparisons, however long the text is. Tokens are compared and
hashed, and nothing else is known of them.
"""

from collections.abc import Iterable

SIZES = (4, 3, 2)
"""Lengths of the n-grams that are looked up, the longest first."""


REACH = 32
"""How far back a match is measured when it is found."""


SUBSTITUTABLE = 4
"""How long a match has to be to be followed past a token that differs; 4 and 8 do equally well on the demo."""


class NgramIndex:
    """A text, and the latest earlier place where what it ends in occurred."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        self.match_length = 0
        """Tokens at the end that occurred before, as far as is known; counted anew after one that differs."""
        # Where the token after the earlier occurrence stands.
        self._following = 0
        self._ends: dict[int, dict[tuple[int, ...], int]] = {size: {} for size in SIZES}
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens to the text."""
        for token in tokens:
            self._append(token)

    def continuation(self, length: int) -> list[int]:
        """Return `length` tokens that followed the earlier occurrence; none if there is no match.

        Where the text ends before they do, it is taken to repeat: an occurrence one token back gives that token again.
        """
        if not self.match_length:
            return []
        period = len(self.tokens) - self._following
        return [self.tokens[self._following + i % period] for i in range(length)]

    def _append(self, token: int) -> None:
        before, continues = self.match_length, self._continues_with(token)
        self.tokens.append(token)
        if before:
            self._following += 1
        self.match_length = before + 1 if continues else 0
        end = len(self.tokens)
        for size in SIZES:
            if size > end:
                continue
            ngram, ends = tuple(self.tokens[-size:]), self._ends[size]
            if not self.match_length and ngram in ends:
                self._following = ends[ngram]
                self.match_length = self._measured(size)
            ends[ngram] = end
        if not self.match_length and before >= SUBSTITUTABLE and self._following < end:
            self.match_length = SIZES[-1]

    def _continues_with(self, token: int) -> bool:
        return self.match_length > 0 and self.tokens[self._following] == token

    def _measured(self, known: int) -> int:
        """Return the length of a match of at least `known` tokens, not beyond `REACH`."""
        end, longest = len(self.tokens), min(REACH, self._following)
        while known < longest and self.tokens[self._following - known - 1] == self.tokens[end - known - 1]:
            known += 1
        return known
