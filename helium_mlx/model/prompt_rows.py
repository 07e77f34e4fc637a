"""The rows of one call of `generate`, and their way through the model: masks, positions and the cache."""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import mlx.core as mx

from helium_mlx.errors import ArgumentError, GenerationError
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.model import argument_checks
from helium_mlx.model.generate_options import GenerationOptions
from helium_mlx.model.interfaces import GenerativeModel

if TYPE_CHECKING:
    from helium_mlx.model.generate_outputs import Record


@dataclass(frozen=True)
class PromptRows:
    """The rows to continue. `mask` and `positions` are None where every id is text.

    `ids`: (B, L), all that is returned; `new` of its last ids are not in `cache` yet. `mask`: (B, T), of the tokens in
    the cache and the new ones. `positions`: (B, T), 0 at padding. `cache` is None if nothing is to be remembered.
    `embeds`: (B, L, hidden_size), what the model is given for the prompt; `ids` are then as many or none.
    """

    ids: mx.array
    new: int
    mask: mx.array | None
    positions: mx.array | None
    cache: list[KVCache] | None
    embeds: mx.array | None = None


def prepare(
    model: GenerativeModel,
    ids: mx.array,
    mask: mx.array | None,
    past_key_values: list[KVCache] | None,
    options: GenerationOptions,
    embeds: mx.array | None = None,
) -> PromptRows:
    """Return the rows, each repeated `rows_each` times, with the mask and positions that transformers uses.

    A mask is inferred where none is given and pad ids, other than eos, are in the prompt; one of ones is dropped.
    """
    past = argument_checks.length_of_past(past_key_values, model.config)
    if past_key_values is not None and not options.use_cache:
        raise GenerationError("past_key_values came, and use_cache is False; leave out one of them")
    B, L = ids.shape if embeds is None else embeds.shape[:2]
    if mask is None and embeds is None and options.pad is not None and options.pad not in options.eos:
        mask = (ids != options.pad).astype(mx.int32)
    elif mask is not None and (not isinstance(mask, mx.array) or mask.shape not in ((B, L), (B, past + L))):
        came = mask.shape if isinstance(mask, mx.array) else type(mask).__name__
        after = f", or {(B, past + L)} with what the cache holds" if past else ""
        raise ArgumentError(f"attention_mask is {came}; expected an mx.array of shape {(B, L)}{after}")
    # As in transformers: a mask as long as the ids says that they begin with what the cache holds.
    new = L - past if mask is None or mask.shape[1] == L or embeds is not None else L
    if new < 1:
        given = "input_ids" if embeds is None else "inputs_embeds"
        raise ArgumentError(f"past_key_values holds {past} tokens; {given}, which begin with them, have {L}")
    ids = mx.repeat(ids.astype(mx.int32), options.rows_each, axis=0)
    embeds = None if embeds is None else mx.repeat(embeds[:, -new:], options.rows_each, axis=0)
    mask = None if mask is None else mx.repeat(mask, options.rows_each, axis=0)
    argument_checks.check_inputs(
        model.config, past_key_values, ids[:, -new:] if embeds is None else None, embeds, mask, None, None
    )
    argument_checks.check_dtypes(past_key_values, embeds, model.dtype)
    if mask is not None and cast(bool, (mask != 0).all().item()):
        mask = None
    positions = None
    if mask is not None:
        mask = (mask != 0).astype(mx.int32)
        positions = mx.where(mask == 0, 0, mx.cumsum(mask, axis=1) - 1)
        if mask.shape[0] > 1 and cast(bool, (mask[:, -1] == 0).any().item()):
            # To the line that called the model's `generate`.
            warnings.warn("a row ends in padding, and its text goes on after that; pad on the left", stacklevel=4)
    cache = past_key_values
    if cache is None and options.use_cache:
        cache = make_cache(model)
    return PromptRows(ids, new, mask, positions, cache, embeds)


class Forward:
    """Runs the rows through the model; what of it is to be returned goes to `record`."""

    def __init__(
        self,
        model: GenerativeModel,
        prompt: PromptRows,
        record: "Record | None" = None,
        prefill_chunk_size: int | None = None,
    ) -> None:
        self.model = model
        self.prefill_chunk_size = prefill_chunk_size
        self.prompt = prompt
        self.record = record

    def first(self) -> mx.array:
        """Return the logits (B, vocab_size) after the prompt, which is run `prefill_chunk_size` tokens at a time."""
        prompt, size = self.prompt, self.prefill_chunk_size or self.prompt.new
        h = self.model.body.embed(prompt.ids[:, -prompt.new :]) if prompt.embeds is None else prompt.embeds
        last = (prompt.new - 1) // size * size
        for start in range(0, last, size):
            left = prompt.new - start - size
            mask, positions = (None if x is None else x[:, :-left] for x in (prompt.mask, prompt.positions))
            self._run(h[:, start : start + size], mask, positions)
            mx.eval([layer.state for layer in prompt.cache or []])
        states = self._run(h[:, last:], prompt.mask, prompt.positions, record=self.record)
        return self.model.logits(states[:, -1])

    def next(self, ids: mx.array) -> mx.array:
        """Return the logits (B, vocab_size) after all of `ids`, (B, L), the last of which is new."""
        return self.model.logits(self._states(ids, ids.shape[1] if self.prompt.cache is None else 1)[:, -1])

    def several(self, ids: mx.array, new: int, kept: int) -> mx.array:
        """Run the last `new` of `ids`, (B, L); return the logits after the last `kept`, (B, kept, vocab_size)."""
        return self.model.logits(self._states(ids, new, last_only=kept == 1)[:, -kept:])

    def _states(self, ids: mx.array, new: int, *, last_only: bool = True) -> mx.array:
        """Run the last `new` of `ids`, (B, L); return the states of the last position at least."""
        mask, positions = self.prompt.mask, self.prompt.positions
        if mask is not None and positions is not None:
            generated = ids.shape[1] - self.prompt.ids.shape[1]
            mask = mx.concatenate([mask, mx.ones((ids.shape[0], generated), mx.int32)], axis=1)
            following = positions[:, -1:] + 1 + mx.arange(generated)
            positions = mx.concatenate([positions, following], axis=1)
        h = self.model.body.embed(ids[:, -new:])
        return self._run(h, mask, positions, record=self.record, last_only=last_only)

    def _run(
        self,
        h: mx.array,
        mask: mx.array | None,
        positions: mx.array | None,
        *,
        record: "Record | None" = None,
        last_only: bool = True,
    ) -> mx.array:
        decoder, cache = self.model.body, self.prompt.cache
        positions = None if positions is None else positions[:, -h.shape[1] :]
        if record is None or not record.wants_layers:
            output = decoder.run(h, cache, attention_mask=mask, position_ids=positions, last_only=last_only)
        else:
            output = decoder.run(
                h, cache, attention_mask=mask, position_ids=positions, attentions_wanted=record.attentions is not None,
                hidden_states_wanted=record.hidden_states is not None,
            )  # fmt: skip
            record.add_layers(output)
        return output.last_hidden_state
