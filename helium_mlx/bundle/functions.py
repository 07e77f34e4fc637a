"""The forward pass as functions without state, written to MLX function files (`.mlxfn`) that any program can call.

A function takes `tokens` uint32 (length,), then where they come, then each layer's cache, keys before values
(2, n_kv_heads, capacity, head_dim), then the weights. It returns the logits of the last token, (1, vocab_size), and the
caches with the new tokens in them. Where they come is for

- one token: `positions` int32 (query heads of a key + 2,), its position again and again and at last 0, and `seen` bool
  (attended,), which of the first places of a cache hold tokens, the new one's included. Both come from the host, as in
  the Python loop, so that no kernel makes them. On a GPU queries, keys and values are rotated at once, the values to
  position 0, which turns nothing.
- part of a prompt: `offset` int32 (1,), the number of tokens that the cache holds, and `count` int32 (1,), how many of
  the tokens are real. Padding after those is written to the cache too, where no real token attends to it and the tokens
  that follow overwrite it.

Its layers are the model's own (`model/helium.py`), and on a GPU a token takes the kernels that the Python loop's does:
attention goes over the first `attended` places, under a mask. The new tokens must not reach beyond those. Nothing
checks that at run time.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from helium_mlx import backend
from helium_mlx.kv_cache.cache import KVCache, both_sides
from helium_mlx.kv_cache.masks import Mask, scaled_dot_product_attention
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.rope import RotaryEmbedding
from helium_mlx.model.serialization import multiplying_modules

PREFILL_LENGTHS = (16, 128, 512)
"""How many tokens a prefill function runs at once."""


SMALLEST_CAPACITY = 512
"""Tokens that the smallest cache holds; each next one holds twice as many, up to the context."""

ATTENDED_STEP = 256
"""A token attends to so many places more than are filled at most."""

CacheArrays = list[mx.array]
"""Keys and values of the first layer, of the second, and so on."""

BY_COLUMNS = ".by_columns"
"""Ends the name of a matrix that a bundle holds transposed."""

# The magnitudes of E2M1; a fourth bit is the sign.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class FunctionShape:
    """How many tokens a function runs at once, how many its cache holds, and over how many places attention goes."""

    length: int
    capacity: int
    attended: int

    @property
    def kind(self) -> str:
        """ "decode" for a single token, else "prefill"."""
        return "decode" if self.length == 1 else "prefill"

    @property
    def name(self) -> str:
        """The name of its file, without the extension."""
        return f"decode_{self.attended}" if self.length == 1 else f"prefill_{self.length}_{self.capacity}"


def function_shapes(context: int) -> list[FunctionShape]:
    """Return the shapes of all functions of a bundle for `context` tokens, the smallest caches first."""
    shapes, smaller = [], 0
    for capacity in capacities(context):
        steps = [*range(smaller + ATTENDED_STEP, capacity, ATTENDED_STEP), capacity]
        shapes += [FunctionShape(1, capacity, attended) for attended in steps]
        shapes += [FunctionShape(length, capacity, capacity) for length in PREFILL_LENGTHS if length <= capacity]
        smaller = capacity
    return shapes


def capacities(context: int) -> list[int]:
    """Return the sizes of cache of a bundle for `context` tokens: doubling, the last one `context` itself."""
    sizes = [SMALLEST_CAPACITY]
    while sizes[-1] < context:
        sizes.append(2 * sizes[-1])
    return [*sizes[:-1], context]


def bundled_weights(model: HeliumForCausalLM) -> dict[str, mx.array]:
    """Return the weights as a bundle holds them, by name: matrices that are stored by columns, transposed.

    Read back as rows, they would be slower to multiply by (`backend.for_products`).
    """
    by_columns = {
        f"{name}.weight" for name, module in multiplying_modules(model) if backend.is_by_columns(module.weight)
    }
    return {
        name + BY_COLUMNS if name in by_columns else name: tensor.T if name in by_columns else tensor
        for name, tensor in model.tensors().items()
    }


class _SlotCache(KVCache):
    """A layer's cache as an array of fixed size that is replaced, and an offset that is an array too."""

    def __init__(self, held: mx.array, start: mx.array, attended: int) -> None:
        super().__init__()
        self.held = held
        self.start = start
        self.attended = attended

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: Mask) -> mx.array:
        return self.attend_joined(queries, mx.concatenate([keys, values]), scale=scale, mask=mask)

    def attend_joined(self, queries: mx.array, keys_values: mx.array, *, scale: float, mask: Mask) -> mx.array:
        if keys_values.shape[2] == 1 and backend.has_fused_kernels():
            # One kernel, where `slice_update` first computes the place in another.
            self.held = mx.put_along_axis(self.held, self.start.reshape(1, 1, 1, 1), keys_values, axis=2)
        else:
            self.held = mx.slice_update(self.held, keys_values, self.start, axes=(2,))
        keys, values = both_sides([self.held], self.attended)
        return scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


class BundleFunction:
    """The forward pass of `model` at one shape, as `mx.export_function` takes it, for weights of `bundled_weights`."""

    def __init__(self, model: HeliumForCausalLM, shape: FunctionShape) -> None:
        self.model = model
        self.weights = bundled_weights(model)
        self.shape = shape
        config = model.config
        self._rope = RotaryEmbedding(
            config.rope_parameters,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            interleaved=config.interleaved_rope,
        )
        embedding, dtype = model.model.embed_tokens, model.model.norm.weight.dtype
        self._float_codes = None
        if isinstance(embedding, nn.QuantizedEmbedding) and embedding.mode in FloatCodes.MODES:
            self._float_codes = FloatCodes(embedding.mode, embedding.group_size, dtype)

    def __call__(self, tokens: mx.array, place: mx.array, extent: mx.array, *rest: mx.array) -> list[mx.array]:
        """Return the outputs for the inputs, all in the order of the module's docstring."""
        n_layers = self.model.config.num_hidden_layers
        held, weights = rest[:n_layers], dict(zip(self.weights, rest[n_layers:], strict=True))
        start = place[:1]
        caches = [_SlotCache(each, start, self.shape.attended) for each in held]
        run = self._decode if self.shape.length == 1 else self._prefill
        with _substituted(self.model, weights):
            h = run(tokens, place, extent, caches)
            logits = self.model.logits(self.model.model.norm(h))
        return [logits, *(cache.held for cache in caches)]

    def _decode(self, token: mx.array, positions: mx.array, seen: mx.array, caches: list[_SlotCache]) -> mx.array:
        position, is_joined = positions[:1], backend.has_fused_kernels()
        rotate = self._rope.at_array(positions if is_joined else position, 1, position + 1)
        h = self._embed(token)
        for layer, cache in zip(self.model.model.layers, caches, strict=True):
            h = layer.step(h, seen, rotate, cache, is_joined=is_joined)
        return h

    def _prefill(self, tokens: mx.array, offset: mx.array, count: mx.array, caches: list[_SlotCache]) -> mx.array:
        length = self.shape.length
        rotate = self._rope.at_array(offset, length, offset + count)
        mask = mx.arange(self.shape.attended) <= (offset + mx.arange(length))[:, None]
        h = self._embed(tokens[None])
        for layer, cache in zip(self.model.model.layers, caches, strict=True):
            h, _ = layer(h, mask, rotate, cache)
        return mx.take(h[0], count - 1, axis=0)

    def _embed(self, tokens: mx.array) -> mx.array:
        embedding = self.model.model.embed_tokens
        if self._float_codes is None:
            return self.model.model.embed(tokens)
        return self._float_codes.unpack(embedding["weight"][tokens], embedding["scales"][tokens])

    def write(self, path: Path, inputs: Sequence[mx.array]) -> None:
        """Export the function to a file, for inputs of the shapes and dtypes of `inputs`, the weights aside."""
        mx.export_function(str(path), self, *inputs, *self.weights.values())


@contextmanager
def _substituted(model: HeliumForCausalLM, weights: Mapping[str, mx.array]) -> Iterator[None]:
    """Give `model` other weights, those of a bundle, for as long as the context lasts."""
    own = model.parameters()
    as_rows = {name: tensor.T if name.endswith(BY_COLUMNS) else tensor for name, tensor in weights.items()}
    model.update(tree_unflatten([(name.removesuffix(BY_COLUMNS), tensor) for name, tensor in as_rows.items()]))
    try:
        yield
    finally:
        model.update(own)


class FloatCodes:
    """Unpacks rows of the modes mxfp8 and nvfp4 into `dtype`."""

    MODES = ("mxfp8", "nvfp4")

    def __init__(self, mode: str, group_size: int, dtype: mx.Dtype) -> None:
        self._bits = 8 if mode == "mxfp8" else 4
        self._group_size = group_size
        self._dtype = dtype
        data = mx.arange(256).astype(mx.uint8)
        e4m3 = mx.from_fp8(data, dtype=mx.float32)
        # 255 stands for NaN, which no scale is.
        powers = mx.power(mx.array(2.0), mx.minimum(mx.arange(256), 254) - 127)
        self._codes = e4m3 if mode == "mxfp8" else mx.array([*_E2M1, *(-value for value in _E2M1)])
        self._scales = powers if mode == "mxfp8" else e4m3
        mx.eval(self._codes, self._scales)

    def unpack(self, weight: mx.array, scales: mx.array) -> mx.array:
        """Return rows of packed codes (..., columns * bits / 32) and their scales as (..., columns)."""
        codes = weight.view(mx.uint8)
        if self._bits == 4:
            # The lower half of a byte comes first.
            codes = mx.stack([codes & 15, codes >> 4], axis=-1).reshape(*weight.shape[:-1], -1)
        values = self._codes[codes].reshape(*scales.shape, self._group_size)
        return (values * self._scales[scales][..., None]).reshape(codes.shape).astype(self._dtype)
