"""Prompt-lookup decoding: drafts copied from earlier in prompt and output, verified several at a time.

A pass runs the last token and the drafts after it through the model at once. At each position the sampler draws the
token that it would have drawn there; drafts are kept as far as they equal the draws, the first draw that differs takes
the place of its draft, and what follows is trimmed from the cache. A draw depends on nothing but the seed, its
place in the text and the tokens before it. So this is lossless whatever the drafts are: greedy ids, the distribution,
and with a seed the text, are those of plain decoding. That is up to rounding: a pass over several tokens may add in
another order than a pass over one, and logits that are equal but for that may be decided otherwise, in 16 bits more
often than in 32.

Drafts cost little where they fail: a pass that accepts none makes the next wait for a longer match, up to `PATIENCE`
tokens. A pass without drafts is read when the next is already under way, as in plain decoding; that next one may have
drafts itself, since they follow from what is known before the token is.

Tokens that a given cache already held are not looked up, since a cache does not know them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from helium_mlx.errors import GenerationError
from helium_mlx.generation.completion import DecodedToken, ranked
from helium_mlx.generation.ngram_index import SIZES, NgramIndex
from helium_mlx.generation.sampling import Sampler, token_logprobs
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.sound_logits import are_finite
from helium_mlx.option_values import require_whole

SHORTEST_MATCH = SIZES[-1]
"""Tokens that have to have occurred before for what followed them to be a draft, while drafts are accepted."""


PATIENCE = 16
"""The most tokens that this grows to while drafts are rejected."""


FIRST_DRAFT = 4
"""Tokens in the first draft; it doubles when all are accepted."""


def check_draft_tokens(draft_tokens: int, cache: list[KVCache], tokens: int) -> None:
    """Raise GenerationError if drafts are not at least 1 token, or longer than `cache` can forget.

    `tokens`: how many there may be in all, with prompt and completion, and what the cache holds already.
    """
    draft_tokens = require_whole("prompt_lookup", draft_tokens, 1, allowed="a whole number of tokens, at least 1")
    for layer in cache:
        # A cache without a size keeps every token. One with a size that will be full keeps a few more than that.
        size = cast(int | None, getattr(layer, "max_size", None))
        if size is None:
            continue
        slots = cast(int, getattr(layer, "max_slots", size))
        # A run that is ended in the middle of a pass has the next one in flight.
        most = (slots - size) // 2
        if tokens > slots and draft_tokens > most:
            instead = f"give prompt_lookup {most} or less" if most else "leave out prompt_lookup"
            raise GenerationError(
                f"prompt_lookup is {draft_tokens}; a cache of {size} tokens, which {tokens} may come to fill, can "
                f"forget at most {most} rejected ones: {instead}, or leave out max_kv_size"
            )


class DraftPolicy:
    """How long a match has to be, and how much to draft, from how the latest drafts fared."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.length = min(limit, FIRST_DRAFT)
        self.required = SHORTEST_MATCH

    def learn(self, drafted: int, accepted: int) -> None:
        """Take in that `accepted` of `drafted` tokens were accepted."""
        self.length = min(2 * self.length if accepted == drafted else accepted + 1, self.limit)
        self.required = SHORTEST_MATCH if accepted else min(2 * self.required, PATIENCE)


@dataclass(frozen=True)
class VerificationPass:
    """One forward pass under way: the drafts in it, and what was drawn at each position.

    `drawn`: (1 + drafts,); `highest`: the highest logit at each; `scored`: log-probabilities of those,
    the top ids, and theirs, if they are asked for.
    """

    drafts: list[int]
    drawn: mx.array
    highest: mx.array
    scored: list[mx.array]


class LookupDecoding:
    """What `streaming.Decoding` is, with up to `draft_tokens` drafts a pass; it counts what became of them.

    `check_draft_tokens` says which caches can be used.
    """

    def __init__(
        self,
        model: HeliumForCausalLM,
        cache: list[KVCache],
        sampler: Sampler,
        top_logprobs: int,
        *,
        prompt: Sequence[int],
        draft_tokens: int,
    ) -> None:
        self.model = model
        self.cache = cache
        self.sampler = sampler
        self.top_logprobs = top_logprobs
        self.index = NgramIndex(prompt)
        self.policy = DraftPolicy(draft_tokens)
        self.drafted = 0
        self.accepted = 0
        self.forward_passes = 0
        """Passes that were read; the prefill, whose last logits give the first token, is one."""

    @property
    def tokens_per_pass(self) -> float:
        """Tokens drawn and kept for each forward pass: 1 where no draft was accepted."""
        return 1 + self.accepted / max(self.forward_passes, 1)

    def tokens(self, logits: mx.array, count: int) -> Iterator[DecodedToken]:
        """Yield `count` tokens, the first from `logits`, (1, vocab_size); closed early, the cache holds some more."""
        current: VerificationPass | None = self._draw(logits, [])
        while current:
            following = None
            if not current.drafts:
                self.sampler.take(current.drawn)
                if count > 1:
                    # The continuation begins with the token that is being computed; the drafts are those after it.
                    following = self._pass(current.drawn, self._drafts(skipped=1, room=count - 2))
            decoded = self._read(current)
            count -= len(decoded)
            if not following and count:
                last = mx.array([decoded[-1].token], dtype=mx.int32)
                following = self._pass(last, self._drafts(skipped=0, room=count - 1))
            yield from decoded
            current = following

    def _drafts(self, *, skipped: int, room: int) -> list[int]:
        """Return at most `room` drafts: the continuation of the text without its first `skipped` tokens."""
        if self.sampler.is_held or self.index.match_length < self.policy.required:
            return []
        return self.index.continuation(skipped + min(self.policy.length, room))[skipped:]

    def _pass(self, last: mx.array, drafts: list[int]) -> VerificationPass:
        """Start a forward pass over the last token, (1,), perhaps still being computed, and the drafts."""
        if not drafts:
            return self._draw(self.model.logits_after(last, self.cache), drafts)
        inputs = mx.concatenate([last.astype(mx.int32), mx.array(drafts, dtype=mx.int32)])
        output = self.model.model.run(self.model.model.embed(inputs[None]), self.cache)
        return self._draw(self.model.logits(output.last_hidden_state[0]), drafts)

    def _draw(self, logits: mx.array, drafts: list[int]) -> VerificationPass:
        """Start drawing at each position as if the drafts before it had been drawn; `logits`: (1 + drafts, V)."""
        left, highest, scored = self.sampler.among(logits), logits.max(axis=-1), []
        drawn = self.sampler.draw(left)
        if self.top_logprobs:
            scored = token_logprobs(left, drawn, self.top_logprobs)
        mx.async_eval(drawn, highest, scored, self.sampler.state)
        return VerificationPass(drafts, drawn, highest, scored)

    def _read(self, current: VerificationPass) -> list[DecodedToken]:
        """Wait for a pass; return the drafts that were drawn and the token after them, and forget the others."""
        drawn = cast(list[int], current.drawn.tolist())
        drafted, accepted = len(current.drafts), 0
        while accepted < drafted and current.drafts[accepted] == drawn[accepted]:
            accepted += 1
        if drafted:
            for layer in self.cache:
                layer.trim(drafted - accepted)
            self.sampler.take(current.drawn[: accepted + 1])
            self.policy.learn(drafted, accepted)
        self.drafted += drafted
        self.accepted += accepted
        self.forward_passes += 1
        self.index.extend(drawn[: accepted + 1])
        alternatives, sound = _alternatives(current), are_finite(current.highest)
        return [
            DecodedToken(token, *alternatives[position], from_draft=position < accepted, is_sound=sound[position])
            for position, token in enumerate(drawn[: accepted + 1])
        ]


def _alternatives(current: VerificationPass) -> list[tuple[float | None, dict[int, float]]]:
    """Return, for each position, the log-probability drawn and the top ids with theirs, the most probable first."""
    if not current.scored:
        return [(None, {})] * (1 + len(current.drafts))
    chosen = cast("list[float]", current.scored[0].tolist())
    return list(zip(chosen, ranked(*current.scored[1:]), strict=True))
