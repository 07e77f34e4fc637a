"""The forward pass as functions without state, written to MLX function files (`.mlxfn`) that any program can call.

A function takes `tokens` int32 (1, length), `offset` int32 (1,), the number of tokens that the cache holds, then
`count` int32 (1,), how many of the tokens are real, where length is more than 1, then each layer's keys and values
(1, n_kv_heads, capacity, head_dim), then the weights. It returns the logits of the last real token, float32
(1, vocab_size), and the caches with the new tokens in them.

Its layers are the model's own (`model/helium.py`); what differs from a run of the model is that positions and masks
come from arrays: attention goes over the whole capacity, under a mask. Padding after the real tokens is written to the
cache too, where no real token attends to it and the tokens that follow overwrite it. So `offset` + length must not be
larger than the capacity. Nothing checks that at run time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.masks import Mask
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.rope import RotaryEmbedding

PREFILL_LENGTHS = (16, 128, 512)
"""How many tokens a prefill function runs at once."""


SMALLEST_CAPACITY = 512
"""Tokens that the smallest cache holds; each next one holds twice as many, up to the context."""


CacheArrays = list[mx.array]
"""Keys and values of the first layer, keys and values of the second, and so on."""

# The magnitudes of E2M1; a fourth bit is the sign.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class FunctionShape:
    """How many tokens a function runs at once, and how many its cache holds."""

    length: int
    capacity: int

    @property
    def kind(self) -> str:
        """ "decode" for a single token, else "prefill"."""
        return "decode" if self.length == 1 else "prefill"

    @property
    def name(self) -> str:
        """The name of its file, without the extension."""
        return f"decode_{self.capacity}" if self.length == 1 else f"prefill_{self.length}_{self.capacity}"


def function_shapes(context: int) -> list[FunctionShape]:
    """Return the shapes of all functions of a bundle for `context` tokens, the smallest caches first."""
    return [
        FunctionShape(length, capacity)
        for capacity in capacities(context)
        for length in (1, *PREFILL_LENGTHS)
        if length <= capacity
    ]


def capacities(context: int) -> list[int]:
    """Return the sizes of cache of a bundle for `context` tokens: doubling, the last one `context` itself."""
    sizes = [SMALLEST_CAPACITY]
    while sizes[-1] < context:
        sizes.append(2 * sizes[-1])
    return [*sizes[:-1], context]


class _SlotCache(KVCache):
    """A layer's cache as two arrays of fixed size that are replaced, and an offset that is an array too."""

    def __init__(self, keys: mx.array, values: mx.array, start: mx.array) -> None:
        super().__init__()
        self.arrays = [keys, values]
        self.start = start

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: Mask) -> mx.array:
        self.arrays = [
            mx.slice_update(held, new, self.start, axes=(2,))
            for held, new in zip(self.arrays, (keys, values), strict=True)
        ]
        return mx.fast.scaled_dot_product_attention(queries, *self.arrays, scale=scale, mask=mask)


class BundleFunction:
    """The forward pass of `model` at one shape, as `mx.export_function` takes it; `weights` names its last inputs."""

    def __init__(self, model: HeliumForCausalLM, weights: Sequence[str], shape: FunctionShape) -> None:
        self.model = model
        self.weights = list(weights)
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

    def __call__(self, *inputs: mx.array) -> list[mx.array]:
        """Return the outputs for the inputs, all in the order of the module's docstring."""
        tokens, offset = inputs[:2]
        rest = inputs[2:]
        count = mx.array([1], dtype=mx.int32)
        if self.shape.length > 1:
            count, *rest = rest
        n_caches = 2 * self.model.config.num_hidden_layers
        with _substituted(self.model, self.weights, rest[n_caches:]):
            return self._forward(tokens, offset, count, list(rest[:n_caches]))

    def _forward(self, tokens: mx.array, offset: mx.array, count: mx.array, caches: CacheArrays) -> list[mx.array]:
        body, length = self.model.model, self.shape.length
        rotate = self._rope.at_array(offset, length, offset + count)
        mask = mx.arange(self.shape.capacity) <= (offset + mx.arange(length))[:, None]
        slots = [_SlotCache(keys, values, offset) for keys, values in zip(caches[::2], caches[1::2], strict=True)]
        h = self._embed(tokens)
        for layer, slot in zip(body.layers, slots, strict=True):
            h, _ = layer(h, mask, rotate, slot)
        last = h if length == 1 else mx.take(h, count - 1, axis=1)
        logits = self.model.logits(body.norm(last))[:, 0].astype(mx.float32)
        return [logits, *(array for slot in slots for array in slot.arrays)]

    def _embed(self, tokens: mx.array) -> mx.array:
        embedding = self.model.model.embed_tokens
        if self._float_codes is None:
            return self.model.model.embed(tokens)
        return self._float_codes.unpack(embedding["weight"][tokens], embedding["scales"][tokens])

    def write(self, path: Path, inputs: Sequence[mx.array]) -> None:
        """Export the function to a file, for inputs of the shapes and dtypes of `inputs`, the weights aside."""
        tensors = self.model.tensors()
        mx.export_function(str(path), self, *inputs, *(tensors[name] for name in self.weights))


@contextmanager
def _substituted(model: HeliumForCausalLM, names: Sequence[str], tensors: Sequence[mx.array]) -> Iterator[None]:
    """Give `model` other weights for as long as the context lasts."""
    own = model.parameters()
    model.update(tree_unflatten(list(zip(names, tensors, strict=True))))
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
