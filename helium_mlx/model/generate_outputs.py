"""What `generate` returns beside ids: transformers' classes, with `mx.array` in place of tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.model.outputs import BaseModelOutputWithPast, Layers, ModelOutput

Steps = tuple[mx.array, ...]


@dataclass
class GenerateDecoderOnlyOutput(ModelOutput):
    """`sequences` (B, L); of each step `scores`, which tokens are chosen by, and `logits`, (B, vocab_size), float32.

    `attentions` and `hidden_states`: of each step a tuple of the layers'. `past_key_values` has all but the last token.
    """

    sequences: mx.array
    scores: Steps | None = None
    logits: Steps | None = None
    attentions: tuple[Layers, ...] | None = None
    hidden_states: tuple[Layers, ...] | None = None
    past_key_values: list[KVCache] | None = None


@dataclass
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """What beams return: also `sequences_scores`, (B,), and `beam_indices`, (B, new ids): the row of `scores` that each
    id was chosen by, -1 after a row's end."""

    sequences: mx.array
    sequences_scores: mx.array | None = None
    scores: Steps | None = None
    logits: Steps | None = None
    beam_indices: mx.array | None = None
    attentions: tuple[Layers, ...] | None = None
    hidden_states: tuple[Layers, ...] | None = None
    past_key_values: list[KVCache] | None = None


def transition_scores(
    sequences: mx.array, scores: Sequence[mx.array], beam_indices: mx.array | None, *, normalize_logits: bool
) -> mx.array:
    """Return the score that each new id was chosen by, (B, new), 0 after the end of a text that beams found."""
    steps = mx.stack(list(scores))
    if normalize_logits:
        steps = steps - mx.logsumexp(steps, axis=-1, keepdims=True)
    rows = beam_indices
    if rows is None:
        rows = mx.broadcast_to(mx.arange(steps.shape[1])[:, None], (steps.shape[1], steps.shape[0]))
    new = cast(int, (rows >= 0).sum(axis=1).max().item())
    rows, tokens = rows[:, :new], sequences[:, sequences.shape[1] - new :]
    there = rows >= 0
    chosen = steps[mx.arange(new), mx.where(there, rows, 0), mx.where(there, tokens, 0)]
    return mx.where(there, chosen, 0)


class Record:
    """Collects, step by step, what the call asked for; a list each, None for what it did not."""

    def __init__(self, *, scores: bool, logits: bool, attentions: bool, hidden_states: bool) -> None:
        self.scores: list[mx.array] | None = [] if scores else None
        self.logits: list[mx.array] | None = [] if logits else None
        self.attentions: list[Layers] | None = [] if attentions else None
        self.hidden_states: list[Layers] | None = [] if hidden_states else None

    @property
    def wants_layers(self) -> bool:
        """Whether the model has to give more than its last state."""
        return self.attentions is not None or self.hidden_states is not None

    def add_layers(self, output: BaseModelOutputWithPast) -> None:
        """Keep what a forward pass gave."""
        if self.attentions is not None:
            self.attentions.append(output.attentions or ())
        if self.hidden_states is not None:
            self.hidden_states.append(output.hidden_states or ())

    def add_step(self, logits: mx.array, scores: mx.array) -> None:
        """Keep a step's logits and what processors made of them, (B, vocab_size)."""
        if self.scores is not None:
            self.scores.append(scores)
        if self.logits is not None:
            self.logits.append(logits.astype(mx.float32))

    @property
    def scores_so_far(self) -> Steps | None:
        """The scores of all steps, for a stopping criterion."""
        return None if self.scores is None else tuple(self.scores)

    def output(self, sequences: mx.array, cache: list[KVCache] | None) -> GenerateDecoderOnlyOutput:
        """Return everything."""
        layers = _fixed(self.attentions), _fixed(self.hidden_states)
        return GenerateDecoderOnlyOutput(sequences, self.scores_so_far, _fixed(self.logits), *layers, cache)

    def beam_output(
        self, sequences: mx.array, scores: mx.array, indices: mx.array, cache: list[KVCache] | None
    ) -> GenerateBeamDecoderOnlyOutput:
        """Return everything, of beams."""
        return GenerateBeamDecoderOnlyOutput(
            sequences, None if self.scores is None else scores, self.scores_so_far, _fixed(self.logits), indices,
            _fixed(self.attentions), _fixed(self.hidden_states), cache,
        )  # fmt: skip


def _fixed(values: list | None) -> tuple | None:
    return None if values is None else tuple(values)
