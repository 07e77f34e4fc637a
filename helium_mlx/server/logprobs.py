"""Log-probabilities as OpenAI's legacy API lists them: tokens, their places in the text, and the likeliest in each.

A token is shown as its text, a part of a character as `bytes:\\xe2\\x80`. Two tokens can have the same text, so that
their ids are beside, in `token_ids` and `top_token_ids`, which OpenAI's API has not.
"""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from helium_mlx.generation.scoring import Score
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer


@dataclass
class TokenList:
    """The tokens of a text in order, `top` alternatives each. `offset` is where the next begins, in characters."""

    tokenizer: HeliumTokenizer
    top: int
    offset: int = 0
    strings: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    tops: list[Mapping[int, float] | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int, logprob: float | None, top: Mapping[int, float], *, text: str | None = None) -> None:
        """Take a token in; `text` is what it is in the text, where its own bytes do not say so."""
        self.strings.append(token_text(self.tokenizer, token) if text is None else text)
        self.ids.append(token)
        self.logprobs.append(logprob)
        likeliest = dict(list(top.items())[: self.top])
        # As OpenAI has it, the token itself is always among them.
        self.tops.append(None if logprob is None or not self.top else {**likeliest, token: logprob})
        self.offsets.append(self.offset)
        if text is None:
            is_hidden = token in self.tokenizer.special_ids
            text = "" if is_hidden else self._decoder.decode(self.tokenizer.token_bytes(token))
        self.offset += len(text)

    def add_prompt(self, score: Score, *, hides_bos: bool) -> None:
        """Take in the tokens of a prompt; the BOS that was put in front of a text is not shown."""
        first = 1 if hides_bos else 0
        spaced = bool(score.tokens[first:]) and self.tokenizer.begins_word(score.tokens[first])
        for place in range(first, len(score.tokens)):
            # The space that a tokenizer puts before a text is none of it.
            text = score.texts[place] if place == first and spaced else None
            self.add(score.tokens[place], score.logprobs[place], score.top_logprobs[place], text=text)

    def taken(self) -> dict[str, object]:
        """Return what has come since the last call, as the API lists it."""
        listed = {
            "tokens": self.strings,
            "token_logprobs": self.logprobs,
            "top_logprobs": [None if top is None else self._by_text(top) for top in self.tops] if self.top else None,
            "text_offset": self.offsets,
            "token_ids": self.ids,
            "top_token_ids": [top and {str(token): value for token, value in top.items()} for top in self.tops],
        }
        self.strings, self.ids, self.logprobs, self.tops, self.offsets = [], [], [], [], []
        return listed

    def _by_text(self, top: Mapping[int, float]) -> dict[str, float]:
        # Of two with the same text the likelier; as they come, it is the first.
        texts: dict[str, float] = {}
        for token, logprob in top.items():
            texts.setdefault(token_text(self.tokenizer, token), logprob)
        return texts


def token_text(tokenizer: HeliumTokenizer, token: int) -> str:
    """Return the text of a token by itself, with the space that it begins with."""
    spelled = tokenizer.token_bytes(token)
    try:
        return spelled.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def mean_logprob(logprobs: Sequence[float | None]) -> float:
    """Return the mean of the log-probabilities that there are; minus infinity for none."""
    known = [value for value in logprobs if value is not None]
    return sum(known) / len(known) if known else -float("inf")
