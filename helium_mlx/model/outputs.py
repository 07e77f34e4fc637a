"""What the models return: transformers' output classes, with `mx.array` in place of tensors.

Fields that are None are left out where an output is read as a tuple or a mapping, as in transformers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import overload

import mlx.core as mx

from helium_mlx.kv_cache.cache import KVCache

Layers = tuple[mx.array, ...]


@dataclass
class ModelOutput:
    """A dataclass that also reads as a tuple (`output[0]`) and as a mapping (`output["logits"]`)."""

    def to_tuple(self) -> tuple[object, ...]:
        """Return the values of the fields that are not None, in order."""
        return tuple(value for _, value in self.items())

    def keys(self) -> list[str]:
        """Return the names of the fields that are not None."""
        return [name for name, _ in self.items()]

    def items(self) -> list[tuple[str, object]]:
        """Return name and value of the fields that are not None."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return [(name, value) for name, value in pairs if value is not None]

    def values(self) -> list[object]:
        """Return the values of the fields that are not None."""
        return [value for _, value in self.items()]

    @overload
    def __getitem__(self, key: slice) -> tuple[object, ...]: ...
    @overload
    def __getitem__(self, key: int | str) -> object: ...
    def __getitem__(self, key: int | str | slice) -> object:
        return dict(self.items())[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()


@dataclass
class BaseModelOutputWithPast(ModelOutput):
    """`last_hidden_state` (B, L, D), normed; `hidden_states`: the embeddings and each layer's output, last normed.

    `attentions`: a layer's weights after the softmax, (B, n_heads, L, tokens attended to).
    """

    last_hidden_state: mx.array
    past_key_values: list[KVCache] | None = None
    hidden_states: Layers | None = None
    attentions: Layers | None = None


@dataclass
class CausalLMOutputWithPast(ModelOutput):
    """`logits` (B, positions kept, vocab_size); `loss` (scalar) where labels were given."""

    loss: mx.array | None = None
    logits: mx.array = None  # pyright: ignore[reportAssignmentType]
    past_key_values: list[KVCache] | None = None
    hidden_states: Layers | None = None
    attentions: Layers | None = None


@dataclass
class SequenceClassifierOutputWithPast(ModelOutput):
    """`logits` (B, num_labels), of the rightmost token that is not padding."""

    loss: mx.array | None = None
    logits: mx.array = None  # pyright: ignore[reportAssignmentType]
    past_key_values: list[KVCache] | None = None
    hidden_states: Layers | None = None
    attentions: Layers | None = None


@dataclass
class TokenClassifierOutput(ModelOutput):
    """`logits` (B, L, num_labels)."""

    loss: mx.array | None = None
    logits: mx.array = None  # pyright: ignore[reportAssignmentType]
    hidden_states: Layers | None = None
    attentions: Layers | None = None
