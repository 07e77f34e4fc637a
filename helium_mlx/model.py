"""The Helium decoder, whole, next to transformers' `modeling_helium.py`.

What deviates from it: q/k/v and gate/up are one matrix each (see `layout.py`), queries and keys are rotated in one
call, and the cache carries out the attention. RMSNorm multiplies by its gain after rounding to the activations' dtype,
as `mx.fast.rms_norm` does; transformers' Helium does so before, which shows in bfloat16 only.

What this file does not know: files, dtypes on disk, tokenizers, sampling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache as memoized

import mlx.core as mx
import mlx.nn as nn

from helium_mlx import backend, layout
from helium_mlx.activations import ACTIVATIONS, make_activation
from helium_mlx.cache import KVCache, Mask, causal_mask, require_cache
from helium_mlx.config import HeliumConfig
from helium_mlx.quantization import ModuleSettings, QuantizationSettings, unquantized
from helium_mlx.rope import RotaryEmbedding, Rotation

Projection = Callable[[mx.array], mx.array]

Gate = Callable[[mx.array, mx.array], mx.array]
"""act(gate) * up."""


@dataclass
class BaseModelOutputWithPast:
    """`last_hidden_state` (B, L, D), normed; `hidden_states`: the embeddings and each layer's output, last normed."""

    last_hidden_state: mx.array
    past_key_values: list[KVCache] | None = None
    hidden_states: tuple[mx.array, ...] | None = None


@dataclass
class CausalLMOutputWithPast:
    """`logits` (B, positions kept, vocab_size), and what `BaseModelOutputWithPast` holds."""

    logits: mx.array
    past_key_values: list[KVCache] | None = None
    hidden_states: tuple[mx.array, ...] | None = None


class HeliumAttention(nn.Module):
    """Multi-head attention with rotary positions; grouped where there are fewer key-value heads than query heads."""

    qkv_proj: Projection
    q_proj: Projection
    k_proj: Projection
    v_proj: Projection

    def __init__(self, config: HeliumConfig, layer: str, settings: ModuleSettings, attention_factor: float) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5 * attention_factor**2
        self._merged = _add_projections(self, "self_attn.qkv_proj", config, layer, settings)
        self.o_proj = _projection("self_attn.o_proj", config, settings(f"{layer}.self_attn.o_proj"))

    def __call__(self, x: mx.array, mask: Mask, rotate: Rotation, cache: KVCache | None) -> mx.array:
        B, L, _ = x.shape
        n_rotated = self.n_heads + self.n_kv_heads
        qkv = self._project(x).reshape(B, L, n_rotated + self.n_kv_heads, self.head_dim).transpose(0, 2, 1, 3)
        rotated, values = rotate(qkv[:, :n_rotated]), qkv[:, n_rotated:]
        queries, keys = rotated[:, : self.n_heads], rotated[:, self.n_heads :]
        if cache is None:
            output = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=self.scale, mask=mask)
        else:
            output = cache.attend(queries, keys, values, scale=self.scale, mask=mask)
        return self.o_proj(output.transpose(0, 2, 1, 3).reshape(B, L, -1))

    def _project(self, x: mx.array) -> mx.array:
        if self._merged:
            return self.qkv_proj(x)
        return mx.concatenate([self.q_proj(x), self.k_proj(x), self.v_proj(x)], axis=-1)


class HeliumMLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    gate_up_proj: Projection
    gate_proj: Projection
    up_proj: Projection

    def __init__(self, config: HeliumConfig, layer: str, settings: ModuleSettings) -> None:
        super().__init__()
        self._merged = _add_projections(self, "mlp.gate_up_proj", config, layer, settings)
        self.down_proj = _projection("mlp.down_proj", config, settings(f"{layer}.mlp.down_proj"))
        if config.hidden_act in ACTIVATIONS:
            self._gate = _gating(config.hidden_act)
        else:
            self.act_fn = make_activation(config.hidden_act)
            self._gate = self._gate_with_parameters

    def __call__(self, x: mx.array) -> mx.array:
        gate, up = mx.split(self.gate_up_proj(x), 2, axis=-1) if self._merged else (self.gate_proj(x), self.up_proj(x))
        return self.down_proj(self._gate(gate, up))

    def _gate_with_parameters(self, gate: mx.array, up: mx.array) -> mx.array:
        return self.act_fn(gate) * up


class HeliumDecoderLayer(nn.Module):
    """Attention, then the MLP, each on the normed residual stream and added to it."""

    def __init__(self, config: HeliumConfig, layer: str, settings: ModuleSettings, attention_factor: float) -> None:
        super().__init__()
        self.self_attn = HeliumAttention(config, layer, settings, attention_factor)
        self.mlp = HeliumMLP(config, layer, settings)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, h: mx.array, mask: Mask, rotate: Rotation, cache: KVCache | None) -> mx.array:
        h = h + self.self_attn(self.input_layernorm(h), mask, rotate, cache)
        return h + self.mlp(self.post_attention_layernorm(h))


class HeliumModel(nn.Module):
    """Embeddings, decoder layers and the final norm; no head."""

    def __init__(self, config: HeliumConfig, settings: ModuleSettings = unquantized) -> None:
        super().__init__()
        self.config = config
        self._rope = RotaryEmbedding(
            config.rope_parameters,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            interleaved=config.interleaved_rope,
        )
        self.embed_tokens = _embedding(config, settings("model.embed_tokens"))
        self.layers = [
            HeliumDecoderLayer(config, layout.layer_prefix(index), settings, self._rope.attention_factor)
            for index in range(config.num_hidden_layers)
        ]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(
        self,
        input_ids: mx.array,
        *,
        past_key_values: list[KVCache] | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPast:
        """Run `input_ids`, integers of shape (B, L), after what `past_key_values` holds; that cache is extended."""
        caches: list[KVCache | None] = [None] * len(self.layers)
        offset, mask = 0, causal_mask(input_ids.shape[1])
        if past_key_values is not None:
            require_cache(past_key_values, len(self.layers))
            caches = [*past_key_values]
            offset, mask = past_key_values[0].offset, past_key_values[0].mask(input_ids.shape[1])
        rotate = self._rope.at(offset, input_ids.shape[1])

        h = self.embed_tokens(input_ids)
        stream = [h]
        for layer, cache in zip(self.layers, caches, strict=True):
            h = layer(h, mask, rotate, cache)
            stream.append(h)
        h = stream[-1] = self.norm(h)
        return BaseModelOutputWithPast(h, past_key_values, tuple(stream) if output_hidden_states else None)


class HeliumForCausalLM(nn.Module):
    """Helium with its language-model head, which shares the embedding where `tie_word_embeddings` says so.

    Source: `kyutai/helium-1-preview-2b` and transformers' class of the same name. A new model has random weights,
    normal with standard deviation `initializer_range`; `helium_mlx.load` returns one with a checkpoint's.
    """

    def __init__(self, config: HeliumConfig, settings: ModuleSettings = unquantized) -> None:
        super().__init__()
        self.config = config
        self.model = HeliumModel(config, settings)
        if not config.tie_word_embeddings:
            self.lm_head = _linear(config.hidden_size, config.vocab_size, False, settings("lm_head"))
        self.apply_to_modules(lambda _, module: _initialize(module, config.initializer_range))

    def __call__(
        self,
        input_ids: mx.array,
        *,
        past_key_values: list[KVCache] | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
    ) -> CausalLMOutputWithPast:
        """Return the logits of the last `logits_to_keep` positions, or of all for 0.

        `input_ids`: integers of shape (B, L), which follow what `past_key_values` holds; that cache is extended.
        """
        output = self.model(input_ids, past_key_values=past_key_values, output_hidden_states=output_hidden_states)
        h = output.last_hidden_state[:, -logits_to_keep:]
        head = self.model.embed_tokens.as_linear if self.config.tie_word_embeddings else self.lm_head
        return CausalLMOutputWithPast(head(h), output.past_key_values, output.hidden_states)


def _linear(columns: int, rows: int, bias: bool, packing: QuantizationSettings | None) -> nn.Module:
    if packing is None:
        return nn.Linear(columns, rows, bias=bias)
    return nn.QuantizedLinear(columns, rows, bias, packing.group_size, packing.bits, packing.mode)


def _projection(path: str, config: HeliumConfig, packing: QuantizationSettings | None) -> nn.Module:
    rows, columns, bias = layout.projection_sizes(config)[path]
    return _linear(columns, rows, bias, packing)


def _embedding(config: HeliumConfig, packing: QuantizationSettings | None) -> nn.Embedding | nn.QuantizedEmbedding:
    if packing is None:
        return nn.Embedding(config.vocab_size, config.hidden_size)
    return nn.QuantizedEmbedding(config.vocab_size, config.hidden_size, packing.group_size, packing.bits, packing.mode)


def _add_projections(module: nn.Module, whole: str, config: HeliumConfig, layer: str, settings: ModuleSettings) -> bool:
    """Give `module` the merged projection, or its parts where they are packed differently; return which."""
    sizes, parts = layout.projection_sizes(config), layout.MERGED[whole]
    mergeable, packing = layout.shared_settings(settings, layer, parts)
    if mergeable:
        _, columns, bias = sizes[parts[0]]
        rows = sum(sizes[part][0] for part in parts)
        module[whole.rpartition(".")[2]] = _linear(columns, rows, bias, packing)
    else:
        for part in parts:
            module[part.rpartition(".")[2]] = _projection(part, config, settings(f"{layer}.{part}"))
    return mergeable


@memoized
def _gating(hidden_act: str) -> Gate:
    activation = ACTIVATIONS[hidden_act]

    def gate_times_up(gate: mx.array, up: mx.array) -> mx.array:
        return activation(gate) * up

    return backend.fuse(gate_times_up)


def _initialize(module: nn.Module, deviation: float) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        module.weight = mx.random.normal(module.weight.shape, scale=deviation)
        if "bias" in module:
            module.bias = mx.zeros(module.weight.shape[0])
