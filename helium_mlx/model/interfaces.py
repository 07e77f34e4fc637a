"""What loading, saving and `generate` ask of a model, so that they need not know the classes of `helium.py`."""

from collections.abc import Iterable
from typing import ClassVar, Protocol

import mlx.core as mx
import mlx.nn as nn

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.checkpoint.generation_config import GenerationConfig
from helium_mlx.checkpoint.layout import Architecture
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.model.outputs import BaseModelOutputWithPast


class Decoder(Protocol):
    """Embedding, layers and norm, without a head: `HeliumModel`."""

    config: HeliumConfig
    embed_tokens: nn.Embedding
    layers: list  # of decoder layers
    norm: nn.RMSNorm

    def __call__(self, input_ids: mx.array) -> BaseModelOutputWithPast:
        """Run ids (B, L)."""
        ...

    def embed(self, input_ids: mx.array) -> mx.array:
        """Return the vectors (B, L, hidden_size) of ids (B, L), unchecked."""
        ...

    def run(
        self,
        h: mx.array,
        cache: list[KVCache] | None,
        *,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        attentions_wanted: bool = False,
        hidden_states_wanted: bool = False,
        last_only: bool = False,
    ) -> BaseModelOutputWithPast:
        """Run the layers over embedded tokens (B, L, hidden_size), unchecked."""
        ...


class PretrainedModel(Protocol):
    """A model with its config, of any head: what reads and writes checkpoints needs of it."""

    architecture: ClassVar[Architecture]
    config: HeliumConfig
    generation_config: GenerationConfig

    @classmethod
    def can_generate(cls) -> bool:
        """Return whether there is a `generation_config`."""
        ...

    @property
    def body(self) -> Decoder:
        """The decoder, without a head."""
        ...

    def tensors(self) -> dict[str, mx.array]:
        """Return every parameter by its name in memory, where projections are merged."""
        ...

    def modules(self) -> Iterable[nn.Module]:
        """Return the model and all modules in it."""
        ...

    def named_modules(self) -> Iterable[tuple[str, nn.Module]]:
        """Return the model and all modules in it, each with its path in memory."""
        ...

    def parameters(self) -> dict:
        """Return the tree of parameters."""
        ...

    def load_weights(self, file_or_weights: list[tuple[str, mx.array]]) -> object:
        """Take weights by their names in memory; all of them must be there."""
        ...

    def eval(self) -> object:
        """Switch dropout off."""
        ...


class GenerativeModel(Protocol):
    """A causal LM: what `generate` runs."""

    config: HeliumConfig
    generation_config: GenerationConfig

    @property
    def body(self) -> Decoder:
        """The decoder, without a head."""
        ...

    @property
    def dtype(self) -> mx.Dtype:
        """What the model computes in."""
        ...

    def tensors(self) -> dict[str, mx.array]:
        """Return every parameter by its name in memory."""
        ...

    def logits(self, h: mx.array) -> mx.array:
        """Return the logits (..., vocab_size) of normed hidden states (..., hidden_size)."""
        ...


class Streamer(Protocol):
    """What takes ids while they are generated: transformers' streamers, or `helium_mlx.TextStreamer`."""

    def put(self, value: mx.array) -> None:
        """Take the prompt, (B, L), and then each step's ids, (B,)."""
        ...

    def end(self) -> None:
        """Learn that no more ids come."""
        ...
