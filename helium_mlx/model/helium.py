"""The Helium decoder and its heads, whole, next to transformers' `modeling_helium.py`.

What deviates from it: q/k/v and gate/up are one matrix each (see `checkpoint/layout.py`), queries and keys are rotated
in one call, and the cache carries out the attention. Arguments that do not fit are refused before anything is computed
(see `argument_checks.py`). One token of each row, what decoding runs, goes a way of its own, `step`: the same numbers
by fewer kernels and fewer views.

What this file does not know: files, dtypes on disk, tokenizers, sampling; `generate` brings in what does.
"""

from collections.abc import Callable, Sequence
from functools import cache as memoized
from typing import TYPE_CHECKING, ClassVar, TypeVar, cast

import mlx.core as mx
import mlx.nn as nn

from helium_mlx import backend
from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.checkpoint.generation_config import GenerationConfig
from helium_mlx.checkpoint.quantization_settings import ModuleSettings, QuantizationSettings, unquantized
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.make import new_cache
from helium_mlx.kv_cache.masks import (
    Mask,
    attention_bias,
    causal_mask,
    explicit_mask,
    mask_of_last_query,
    scaled_dot_product_attention,
)
from helium_mlx.model import argument_checks, losses
from helium_mlx.model.activations import ACTIVATIONS, make_activation
from helium_mlx.model.generation_mixin import GenerationMixin
from helium_mlx.model.outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    ModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from helium_mlx.model.pretrained import HeliumPreTrainedModel
from helium_mlx.model.rope import RotaryEmbedding, Rotation
from helium_mlx.process import require_not_forked

if TYPE_CHECKING:
    from typing_extensions import Unpack

Projection = Callable[[mx.array], mx.array]
Gate = Callable[[mx.array, mx.array], mx.array]
"""act(gate) * up."""


Output = TypeVar("Output", bound=ModelOutput)


class HeliumAttention(nn.Module):
    """Multi-head attention with rotary positions; grouped where there are fewer key-value heads than query heads."""

    qkv_proj: Projection
    q_proj: Projection
    k_proj: Projection
    v_proj: Projection
    o_proj: Projection

    def __init__(self, config: HeliumConfig, layer: str, settings_of: ModuleSettings, attention_factor: float) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5 * attention_factor**2
        self.dropout = config.attention_dropout
        self._merged = _add_projections(self, "self_attn.qkv_proj", config, layer, settings_of)
        self.o_proj = _projection("self_attn.o_proj", config, settings_of(f"{layer}.self_attn.o_proj"))

    def __call__(
        self,
        x: mx.array,
        mask: Mask,
        rotate: Rotation,
        cache: KVCache | None,
        *,
        residual: mx.array | None = None,
        weights_wanted: bool = False,
        last_only: bool = False,
    ) -> tuple[mx.array, mx.array | None]:
        heads = _by_head(self._project(x), self.n_heads + 2 * self.n_kv_heads)
        queries, keys, values = self._rotated(heads, rotate)
        if last_only:
            queries, mask = queries[:, :, -1:], mask_of_last_query(mask)
        weights = None
        if weights_wanted or (self.training and self.dropout > 0):
            if cache is not None:
                keys, values = cache.update_and_fetch(keys, values)
            output, weights = self._attend_step_by_step(queries, keys, values, mask)
        elif cache is None:
            output = scaled_dot_product_attention(queries, keys, values, scale=self.scale, mask=mask)
        else:
            output = cache.attend(queries, keys, values, scale=self.scale, mask=mask)
        B, _, L, _ = output.shape
        # With one token, (B, heads, 1, D) and (B, 1, heads, D) are the same values in the same order.
        output = (output if L == 1 else output.transpose(0, 2, 1, 3)).reshape(B, L, -1)
        return _with_residual(residual, _part(self, "o_proj"), output), weights

    def step(
        self, x: mx.array, residual: mx.array, mask: Mask, rotate: Rotation, cache: KVCache, *, is_joined: bool
    ) -> mx.array:
        """Return the residual stream after one token of each row, (B, hidden_size), that follows what `cache` holds.

        With `is_joined` there is one row, and `rotate` takes all heads at once (`RotaryEmbedding.of_groups`): queries
        in groups of as many heads as there are keys, then the keys, then the values.
        """
        B, heads = x.shape[0], self._project(x)
        if is_joined:
            groups = rotate(heads.reshape(-1, self.n_kv_heads, 1, self.head_dim))
            queries, keys_values = mx.split(groups, [self.n_heads // self.n_kv_heads])
            queries = queries if queries.shape[0] == 1 else queries.reshape(1, self.n_heads, 1, self.head_dim)
            output = cache.attend_joined(queries, keys_values, scale=self.scale, mask=mask)
        else:
            queries, keys, values = self._rotated(heads.reshape(B, -1, 1, self.head_dim), rotate)
            output = cache.attend(queries, keys, values, scale=self.scale, mask=mask)
        return _with_residual(residual, _part(self, "o_proj"), output.reshape(B, -1))

    def _project(self, x: mx.array) -> mx.array:
        if self._merged:
            return _part(self, "qkv_proj")(x)
        return mx.concatenate([_part(self, "q_proj")(x), _part(self, "k_proj")(x), _part(self, "v_proj")(x)], axis=-1)

    def _rotated(self, heads: mx.array, rotate: Rotation) -> tuple[mx.array, mx.array, mx.array]:
        """Return queries, keys and values of all heads (B, heads, L, D), the first two rotated in one call."""
        n_rotated = self.n_heads + self.n_kv_heads
        rotated, values = rotate(heads[:, :n_rotated]), heads[:, n_rotated:]
        return rotated[:, : self.n_heads], rotated[:, self.n_heads :], values

    def _attend_step_by_step(
        self, queries: mx.array, keys: mx.array, values: mx.array, mask: Mask
    ) -> tuple[mx.array, mx.array]:
        """Return the attention and its weights after the softmax; the fused kernel keeps those to itself."""
        repeats = self.n_heads // self.n_kv_heads
        dtype = queries.dtype
        keys, values = mx.repeat(keys, repeats, axis=1), mx.repeat(values, repeats, axis=1)
        if dtype == mx.float16:
            # A product of large queries and keys is more than it holds, before the scale makes it small.
            queries, keys = queries.astype(mx.float32), keys.astype(mx.float32)
        scores = ((queries @ keys.swapaxes(-1, -2)) * self.scale).astype(mx.float32)
        bias = explicit_mask(mask, queries.shape[2], keys.shape[2], mx.float32)
        if bias is not None:
            scores = scores + bias
        weights = mx.softmax(scores, axis=-1).astype(dtype)
        if self.training and self.dropout > 0:
            kept = mx.random.bernoulli(1 - self.dropout, weights.shape)
            weights = mx.where(kept, weights / (1 - self.dropout), 0)
        return weights @ values, weights


def _by_head(x: mx.array, n_heads: int) -> mx.array:
    """Return (B, L, n_heads * D) as (B, n_heads, L, D)."""
    B, L, _ = x.shape
    return x.reshape(B, n_heads, 1, -1) if L == 1 else x.reshape(B, L, n_heads, -1).transpose(0, 2, 1, 3)


def _part(module: nn.Module, name: str) -> Callable[..., mx.array]:
    """Return what `getattr` does, without the microsecond that MLX's lookup of a submodule takes."""
    found = module.get(name)
    return getattr(module, name) if found is None else found


def _with_residual(residual: mx.array | None, projection: Projection, x: mx.array) -> mx.array:
    """Return `residual`, if there is one, plus the projection: one kernel where that is a plain matrix."""
    if residual is None:
        return projection(x)
    if type(projection) is nn.Linear and "bias" not in cast(nn.Linear, projection):
        return mx.addmm(residual, x, cast(nn.Linear, projection)["weight"].T)
    return residual + projection(x)


class HeliumMLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    gate_up_proj: Projection
    gate_proj: Projection
    up_proj: Projection
    down_proj: Projection

    def __init__(self, config: HeliumConfig, layer: str, settings_of: ModuleSettings) -> None:
        super().__init__()
        self._merged = _add_projections(self, "mlp.gate_up_proj", config, layer, settings_of)
        self.down_proj = _projection("mlp.down_proj", config, settings_of(f"{layer}.mlp.down_proj"))
        if config.hidden_act in ACTIVATIONS:
            self._gate = _gating(config.hidden_act)
        else:
            self.act_fn = make_activation(config.hidden_act)
            self._gate = self._gate_with_parameters

    def __call__(self, x: mx.array, residual: mx.array | None = None) -> mx.array:
        if self._merged:
            gate, up = mx.split(_part(self, "gate_up_proj")(x), 2, axis=-1)
        else:
            gate, up = _part(self, "gate_proj")(x), _part(self, "up_proj")(x)
        return _with_residual(residual, _part(self, "down_proj"), self._gate(gate, up))

    def _gate_with_parameters(self, gate: mx.array, up: mx.array) -> mx.array:
        return self.act_fn(gate) * up


class HeliumDecoderLayer(nn.Module):
    """Attention, then the MLP, each on the normed residual stream and added to it."""

    def __init__(self, config: HeliumConfig, layer: str, settings_of: ModuleSettings, attention_factor: float) -> None:
        super().__init__()
        self.self_attn = HeliumAttention(config, layer, settings_of, attention_factor)
        self.mlp = HeliumMLP(config, layer, settings_of)
        self.input_layernorm = _norm(config)
        self.post_attention_layernorm = _norm(config)

    def __call__(
        self,
        h: mx.array,
        mask: Mask,
        rotate: Rotation,
        cache: KVCache | None,
        *,
        weights_wanted: bool = False,
        last_only: bool = False,
    ) -> tuple[mx.array, mx.array | None]:
        h, weights = self.self_attn(
            self.input_layernorm(h), mask, rotate, cache, residual=h[:, -1:] if last_only else h,
            weights_wanted=weights_wanted, last_only=last_only,
        )  # fmt: skip
        return self.mlp(self.post_attention_layernorm(h), h), weights

    def step(self, h: mx.array, mask: Mask, rotate: Rotation, cache: KVCache, *, is_joined: bool) -> mx.array:
        """Do what `__call__` does for one token of each row, (B, hidden_size); see `HeliumAttention.step`."""
        h = self.self_attn.step(_part(self, "input_layernorm")(h), h, mask, rotate, cache, is_joined=is_joined)
        return _part(self, "mlp")(_part(self, "post_attention_layernorm")(h), h)


class HeliumModel(HeliumPreTrainedModel):
    """Embeddings, decoder layers and the final norm; no head. transformers' class of the same name."""

    architecture: ClassVar[layout.Architecture] = "Model"

    def __init__(self, config: HeliumConfig, settings_of: ModuleSettings = unquantized) -> None:
        super().__init__(config)
        self._rope = RotaryEmbedding(
            config.rope_parameters,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            interleaved=config.interleaved_rope,
        )
        self.embed_tokens = _embedding(config, settings_of("model.embed_tokens"))
        self.layers = [
            HeliumDecoderLayer(config, layout.layer_prefix(index), settings_of, self._rope.attention_factor)
            for index in range(config.num_hidden_layers)
        ]
        self.norm = _norm(config)
        _initialize(self, config.initializer_range)
        if config.pad_token_id is not None and isinstance(self.embed_tokens, nn.Embedding):
            # The padding token's vector starts at zero, as torch's does.
            padding = mx.arange(config.vocab_size)[:, None] == config.pad_token_id
            self.embed_tokens.weight = mx.where(padding, 0, self.embed_tokens.weight)

    def __call__(
        self,
        input_ids: mx.array | None = None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: list[KVCache] | None = None,
        inputs_embeds: mx.array | None = None,
        use_cache: bool | None = None,
        cache_position: mx.array | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """Run tokens after what `past_key_values` holds; that cache is extended. Arguments are transformers'.

        `input_ids`: integers (B, L), or instead `inputs_embeds` (B, L, hidden_size). `attention_mask`: see
        `masks.attention_bias`. `position_ids`: integers (B or 1, L). `cache_position`: integers (L,), which must be the
        places after the cache. The three `output_` and `return_` flags and `use_cache` default to the config's.

        Raises ArgumentError, before anything is computed, for arguments that do not fit the model or each other.
        """
        require_not_forked("run the model there")
        config = self.config
        argument_checks.check_flags(
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )
        argument_checks.check_inputs(
            config, past_key_values, input_ids, inputs_embeds, attention_mask, position_ids, cache_position
        )
        argument_checks.check_dtypes(past_key_values, inputs_embeds, self.norm.weight.dtype)
        if past_key_values is None and _setting(use_cache, config.use_cache):
            past_key_values = new_cache(config.num_hidden_layers)
        output = self.run(
            self._embed(input_ids) if inputs_embeds is None else inputs_embeds,
            past_key_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            attentions_wanted=_setting(output_attentions, config.output_attentions),
            hidden_states_wanted=_setting(output_hidden_states, config.output_hidden_states),
        )
        return _returned(output, return_dict, config)

    def embed(self, input_ids: mx.array) -> mx.array:
        """Return the embeddings (B, L, hidden_size) of `input_ids` (B, L), in the model's dtype."""
        # Weights of the modes mxfp4, mxfp8 and nvfp4 come out of MLX in bfloat16 whatever the rest is in.
        return self.embed_tokens(input_ids).astype(self.norm.weight.dtype)

    def _embed(self, input_ids: mx.array | None) -> mx.array:
        assert input_ids is not None
        h, pad_token_id = self.embed(input_ids), self.config.pad_token_id
        if pad_token_id is None:
            return h
        # torch's embedding has no gradient for the padding token.
        return mx.where((input_ids.astype(mx.int32) == pad_token_id)[..., None], mx.stop_gradient(h), h)

    def run(
        self,
        h: mx.array,
        past_key_values: list[KVCache] | None,
        *,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        row_offsets: Sequence[int] | None = None,
        attentions_wanted: bool = False,
        hidden_states_wanted: bool = False,
        last_only: bool = False,
    ) -> BaseModelOutputWithPast:
        """Run embeddings (B, L, D), unchecked: the forward pass itself, and what generation calls.

        `row_offsets` are the positions of each row's first token, where the cache's rows differ in length.

        With `last_only` the last layer computes its keys and values of all positions, and the rest of the last one
        only: `last_hidden_state` is then (B, 1, D).
        """
        L = h.shape[1]
        caches: list[KVCache] | list[None] = [None] * len(self.layers) if past_key_values is None else past_key_values
        offset = 0 if past_key_values is None else past_key_values[0].offset
        # As in transformers, packed sequences are looked for only where there is no cache.
        packed = position_ids if past_key_values is None else None
        mask = attention_bias(attention_mask, packed, length=L, offset=offset, dtype=h.dtype)
        if past_key_values is not None:
            mask = past_key_values[0].mask(L) if mask is None else past_key_values[0].restrict(mask, L)
        elif mask is None:
            mask = causal_mask(L)
        if position_ids is not None:
            rotate = self._rope.at_positions(position_ids)
        else:
            # `last_only` is for generation, which has no use for gradients.
            rotate = (
                self._rope.at(offset, L, differentiable=not last_only)
                if row_offsets is None
                else self._rope.at_rows(row_offsets, L)
            )

        hidden_states, attentions = [h], []
        for layer, cache in zip(self.layers, caches, strict=True):
            is_last = last_only and layer is self.layers[-1]
            h, weights = layer(h, mask, rotate, cache, weights_wanted=attentions_wanted, last_only=is_last)
            hidden_states.append(h)
            attentions.append(weights)
        h = hidden_states[-1] = self.norm(h)
        return BaseModelOutputWithPast(
            last_hidden_state=h,
            past_key_values=past_key_values,
            hidden_states=tuple(hidden_states) if hidden_states_wanted else None,
            attentions=tuple(attentions) if attentions_wanted else None,
        )

    def step(self, h: mx.array, caches: list[KVCache], *, row_offsets: Sequence[int] | None = None) -> mx.array:
        """Do what `run` does for the embedding of one token of each row, (B, hidden_size), after what `caches` hold."""
        offsets = row_offsets or [caches[0].offset]
        mask = caches[0].mask(1)
        is_joined = h.shape[0] == 1 and backend.has_fused_kernels()
        if is_joined:
            groups = self.config.num_attention_heads // self.config.num_key_value_heads
            rotate = self._rope.of_groups(offsets[0], groups + 1)
        else:
            rotate = self._rope.at_rows(offsets, 1)
        for layer, cache in zip(self.layers, caches, strict=True):
            h = layer.step(h, mask, rotate, cache, is_joined=is_joined)
        return self.norm(h)


class HeliumForCausalLM(HeliumPreTrainedModel, GenerationMixin):
    """Helium with its language-model head, which shares the embedding where `tie_word_embeddings` says so.

    Source: `kyutai/helium-1-preview-2b` and transformers' class of the same name. A new model has random weights,
    normal with standard deviation `initializer_range`; `helium_mlx.load` returns one with a checkpoint's.
    """

    architecture: ClassVar[layout.Architecture] = "ForCausalLM"

    def __init__(self, config: HeliumConfig, settings_of: ModuleSettings = unquantized) -> None:
        super().__init__(config)
        self.model = HeliumModel(config, settings_of)
        if not config.tie_word_embeddings:
            self.lm_head = _linear(config.hidden_size, config.vocab_size, False, settings_of("lm_head"))
            _initialize(self.lm_head, config.initializer_range)
        self.generation_config = GenerationConfig.from_model_config(config)

    def __call__(
        self,
        input_ids: mx.array | None = None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: list[KVCache] | None = None,
        inputs_embeds: mx.array | None = None,
        labels: mx.array | None = None,
        use_cache: bool | None = None,
        cache_position: mx.array | None = None,
        logits_to_keep: int | mx.array = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **loss_options: "Unpack[losses.LossOptions]",
    ) -> CausalLMOutputWithPast:
        """Return logits and, with `labels`, the loss. Arguments as for `HeliumModel`, and:

        `labels`: integers (B, positions kept), -100 where there is none; the logits before each predict it.
        `logits_to_keep`: how many positions to keep from the end, 0 for all; see `positions_to_keep`.
        """
        require_not_forked("run the model there")
        argument_checks.check_flags(return_dict=return_dict)
        kept = argument_checks.positions_to_keep(logits_to_keep, input_ids, inputs_embeds)
        argument_checks.check_loss_options(
            loss_options, labels, input_ids, inputs_embeds, self.config.vocab_size,
            kept.stop - kept.start if isinstance(kept, slice) else kept.size,
        )  # fmt: skip
        output = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, cache_position,
            output_attentions, output_hidden_states, return_dict=True,
        )  # fmt: skip
        logits = self.logits(output.last_hidden_state[:, kept])
        loss = None if labels is None else losses.causal_lm_loss(logits, labels, **loss_options)
        result = CausalLMOutputWithPast(loss, logits, output.past_key_values, output.hidden_states, output.attentions)
        return _returned(result, return_dict, self.config)

    def logits(self, h: mx.array) -> mx.array:
        """Return the logits (..., vocab_size) of normed hidden states (..., hidden_size)."""
        return self.model.embed_tokens.as_linear(h) if self.config.tie_word_embeddings else self.lm_head(h)

    def next_logits(
        self, input_ids: mx.array, cache: list[KVCache], row_offsets: Sequence[int] | None = None
    ) -> mx.array:
        """Run `input_ids` (B, L), unchecked; return the last position's logits (B, vocab_size): what decoding needs."""
        output = self.model.run(self.model.embed(input_ids), cache, row_offsets=row_offsets, last_only=True)
        return self.logits(output.last_hidden_state[:, -1])

    def logits_after(
        self, tokens: mx.array, cache: list[KVCache], row_offsets: Sequence[int] | None = None
    ) -> mx.array:
        """Run one token of each row, (B,), unchecked; return the logits of the next, (B, vocab_size)."""
        return self.logits(self.model.step(self.model.embed(tokens), cache, row_offsets=row_offsets))


class HeliumForSequenceClassification(HeliumPreTrainedModel):
    """Helium with a linear head on the rightmost token of each row that is not padding."""

    architecture: ClassVar[layout.Architecture] = "ForSequenceClassification"

    def __init__(self, config: HeliumConfig, settings_of: ModuleSettings = unquantized) -> None:
        super().__init__(config)
        self.model = HeliumModel(config, settings_of)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        _initialize(self.score, config.initializer_range)

    def __call__(
        self,
        input_ids: mx.array | None = None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: list[KVCache] | None = None,
        inputs_embeds: mx.array | None = None,
        labels: mx.array | None = None,
        use_cache: bool | None = None,
        cache_position: mx.array | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutputWithPast:
        """Return logits (B, num_labels) and, with `labels`, the loss that `problem_type` names or the labels imply.

        `labels`: classes (B,); numbers (B,) or (B, num_labels) for regression; 0/1 floats (B, num_labels) for several
        labels at once. Raises ArgumentError for a batch of several rows without a pad token.
        """
        require_not_forked("run the model there")
        config = self.config
        argument_checks.check_flags(return_dict=return_dict)
        argument_checks.check_poolable(input_ids, inputs_embeds, config)
        problem_type = argument_checks.check_class_labels(labels, input_ids, inputs_embeds, config)
        output = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, cache_position,
            output_attentions, output_hidden_states, return_dict=True,
        )  # fmt: skip
        h = _rightmost_token(output.last_hidden_state, input_ids, config.pad_token_id)
        logits = self.score(h)
        loss = None
        if labels is not None and problem_type is not None:
            loss = losses.sequence_classification_loss(logits, labels, problem_type)
        result = SequenceClassifierOutputWithPast(
            loss, logits, output.past_key_values, output.hidden_states, output.attentions
        )
        return _returned(result, return_dict, config)


class HeliumForTokenClassification(HeliumPreTrainedModel):
    """Helium with dropout and a linear head on every token."""

    architecture: ClassVar[layout.Architecture] = "ForTokenClassification"

    def __init__(self, config: HeliumConfig, settings_of: ModuleSettings = unquantized) -> None:
        super().__init__(config)
        self.model = HeliumModel(config, settings_of)
        given = [rate for rate in (config.classifier_dropout, config.hidden_dropout) if rate is not None]
        self.dropout = nn.Dropout(given[0] if given else 0.1)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=config.token_classification_bias)
        _initialize(self.score, config.initializer_range)

    def __call__(
        self,
        input_ids: mx.array | None = None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: list[KVCache] | None = None,
        inputs_embeds: mx.array | None = None,
        labels: mx.array | None = None,
        use_cache: bool | None = None,
        cache_position: mx.array | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TokenClassifierOutput:
        """Return logits (B, L, num_labels) and, with `labels` (B, L), -100 where there is none, the loss."""
        require_not_forked("run the model there")
        argument_checks.check_flags(return_dict=return_dict)
        argument_checks.check_labels(labels, input_ids, inputs_embeds, self.config.num_labels)
        output = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, cache_position,
            output_attentions, output_hidden_states, return_dict=True,
        )  # fmt: skip
        logits = self.score(self.dropout(output.last_hidden_state))
        loss = None if labels is None else losses.cross_entropy(logits, labels)
        result = TokenClassifierOutput(loss, logits, output.hidden_states, output.attentions)
        return _returned(result, return_dict, self.config)


def _setting(given: bool | None, configured: bool) -> bool:
    return configured if given is None else given


def _returned(output: Output, return_dict: bool | None, config: HeliumConfig) -> Output:
    # Typed as transformers types it, though a tuple where that is asked for.
    return output if _setting(return_dict, config.return_dict) else cast(Output, output.to_tuple())


def _rightmost_token(h: mx.array, input_ids: mx.array | None, pad_token_id: int | None) -> mx.array:
    """Return, of (B, L, D), each row's rightmost token that is not padding, (B, D).

    Without ids or a pad token it is the last; a row of nothing but padding gives its first, as in transformers.
    """
    if input_ids is None or pad_token_id is None:
        return h[:, -1]
    places = mx.arange(input_ids.shape[1]) * (input_ids.astype(mx.int32) != pad_token_id)
    return mx.take_along_axis(h, mx.argmax(places, axis=-1)[:, None, None], axis=1)[:, 0]


def _linear(columns: int, rows: int, bias: bool, settings: QuantizationSettings | None) -> nn.Module:
    if settings is None:
        return nn.Linear(columns, rows, bias=bias)
    return nn.QuantizedLinear(columns, rows, bias, settings.group_size, settings.bits, settings.mode)


def _projection(path: str, config: HeliumConfig, settings: QuantizationSettings | None) -> nn.Module:
    rows, columns, bias = layout.projection_sizes(config)[path]
    return _linear(columns, rows, bias, settings)


def _norm(config: HeliumConfig) -> nn.RMSNorm:
    # transformers' Helium multiplies by the gain before it rounds to 16 bits; this, one kernel on a GPU, rounds first.
    return nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


def _embedding(config: HeliumConfig, settings: QuantizationSettings | None) -> nn.Embedding | nn.QuantizedEmbedding:
    if settings is None:
        return nn.Embedding(config.vocab_size, config.hidden_size)
    return nn.QuantizedEmbedding(
        config.vocab_size, config.hidden_size, settings.group_size, settings.bits, settings.mode
    )


def _add_projections(
    module: nn.Module, whole: str, config: HeliumConfig, layer: str, settings_of: ModuleSettings
) -> bool:
    """Give `module` the merged projection, or its parts where they are packed differently; return which."""
    sizes, parts = layout.projection_sizes(config), layout.MERGED[whole]
    mergeable, settings = layout.shared_settings(settings_of, layer, parts)
    if mergeable:
        _, columns, bias = sizes[parts[0]]
        rows = sum(sizes[part][0] for part in parts)
        module[whole.rpartition(".")[2]] = _linear(columns, rows, bias, settings)
    else:
        for part in parts:
            module[part.rpartition(".")[2]] = _projection(part, config, settings_of(f"{layer}.{part}"))
    return mergeable


@memoized
def _gating(hidden_act: str) -> Gate:
    activation = ACTIVATIONS[hidden_act]

    def gate_times_up(gate: mx.array, up: mx.array) -> mx.array:
        return activation(gate) * up

    return backend.fuse(gate_times_up)


def _initialize(module: nn.Module, deviation: float) -> None:
    """Give every matrix inside random values and every bias zeros, as transformers initialises this family."""

    def initialize(_: str, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight = mx.random.normal(module.weight.shape, scale=deviation)
            if "bias" in module:
                module.bias = mx.zeros(module.weight.shape[0])

    module.apply_to_modules(initialize)
