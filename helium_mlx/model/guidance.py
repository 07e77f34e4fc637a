"""What the model says without the prompt, or after another one: what guidance goes away from (arXiv:2306.17806)."""

import mlx.core as mx

from helium_mlx.kv_cache.make import make_cache
from helium_mlx.model.interfaces import GenerativeModel


class Unconditional:
    """Logits after a prompt of its own, (B, L), by default the last id of each row, and all ids that follow.

    As in transformers, positions are counted from the left, padding included.
    """

    def __init__(
        self, model: GenerativeModel, prompt: mx.array | None, mask: mx.array | None, *, use_cache: bool
    ) -> None:
        self.model = model
        self.ids = prompt
        self.mask = mask
        self.cache = make_cache(model) if use_cache else None
        self.is_begun = False

    def logits(self, ids: mx.array) -> mx.array:
        """Return the logits (B, vocab_size) of the next ids; `ids` (B, L) have one more each time."""
        last = ids[:, -1:]
        if self.ids is None:
            self.ids = last
        elif self.is_begun:
            self.ids = mx.concatenate([self.ids, last], axis=1)
            if self.mask is not None:
                self.mask = mx.concatenate([self.mask, mx.ones_like(last)], axis=1)
        new = last if self.is_begun and self.cache is not None else self.ids
        self.is_begun = True
        body = self.model.body
        output = body.run(body.embed(new), self.cache, attention_mask=self.mask, last_only=True)
        return self.model.logits(output.last_hidden_state[:, -1])
