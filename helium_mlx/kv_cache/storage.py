"""How a cache keeps keys and values, whatever their order: as they come, or quantized along each head.

A storage turns keys or values (B, n_kv_heads, L, head_dim) into parts, arrays of shape (B, n_kv_heads, L, some width)
that share the token axis, so that a cache can append to, cut and reorder the parts without knowing what they are; and
it carries out the attention over them. A token's parts depend on that token alone, so nothing depends on how a prompt
was cut into chunks.

Quantized keys and values stay packed in memory: scores and outputs are `mx.quantized_matmul`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from helium_mlx import backend
from helium_mlx.errors import OptionError, shown
from helium_mlx.kv_cache.masks import Mask, explicit_mask, scaled_dot_product_attention
from helium_mlx.option_values import plain

# Below 4 bits the text of a 2-billion-parameter model falls apart.
KV_BITS = (4, 5, 6, 8)

# What MLX's affine quantization has.
KV_GROUP_SIZES = (32, 64, 128)
Parts = Sequence[mx.array]

# In a block. 32 to 256 are as fast, and the larger take more memory.
QUERIES_AT_ONCE = 64

# For fewer queries, storing the keys anew costs what it saves.
_MANY_QUERIES = 4


class PlainStorage:
    """Keeps keys and values as they come."""

    bits: int | None = None
    group_size: int | None = None

    def require_fit(self, head_dim: int) -> None:
        """Accept heads of any size."""

    def pack(self, x: mx.array) -> list[mx.array]:
        """Return the parts of keys or values (B, n_kv_heads, L, head_dim)."""
        return [x]

    def unpack(self, parts: Parts, dtype: mx.Dtype) -> mx.array:
        """Return the keys or values in their parts, (B, n_kv_heads, T, head_dim)."""
        return parts[0].astype(dtype)

    def part_layout(self, head_dim: int, dtype: mx.Dtype) -> list[tuple[int, mx.Dtype]]:
        """Return the width and the dtype of each part of keys that come in `dtype`."""
        return [(head_dim, dtype)]

    def head_dim(self, parts: Parts) -> int:
        """Return the head dimension of what is in the parts."""
        return parts[0].shape[-1]

    def attend(self, queries: mx.array, keys: Parts, values: Parts, *, scale: float, mask: Mask) -> mx.array:
        """Return the attention of `queries` (B, n_heads, L, head_dim) over the parts of keys and values."""
        return attention(queries, keys[0], values[0], scale=scale, mask=mask)


@dataclass(frozen=True)
class QuantizedStorage:
    """Keeps codes of `bits` bits, and a scale and a bias for each `group_size` numbers of a head.

    Raises GenerationError for bits or a group size that a cache does not have.
    """

    bits: int = 8
    group_size: int = 64

    def __post_init__(self) -> None:
        require_group_size(self.group_size)
        require_bits(self.bits)
        for name, value in (("bits", plain(self.bits)), ("group_size", plain(self.group_size))):
            object.__setattr__(self, name, value)

    def require_fit(self, head_dim: int) -> None:
        """Raise GenerationError unless heads of this size divide into groups."""
        if head_dim % self.group_size == 0:
            return
        fitting = [size for size in KV_GROUP_SIZES if head_dim % size == 0]
        remedy = f"give {_listed(fitting)}" if fitting else "no group size fits; leave kv_bits out"
        raise OptionError(
            f"kv_group_size is {self.group_size}, which does not divide the model's head_dim {head_dim}; {remedy}"
        )

    def pack(self, x: mx.array) -> list[mx.array]:
        """Return codes, scales and biases of keys or values (B, n_kv_heads, L, head_dim)."""
        x = x.astype(backend.compute_dtype(x.dtype, quantized=True))
        return list(mx.quantize(x, group_size=self.group_size, bits=self.bits))

    def unpack(self, parts: Parts, dtype: mx.Dtype) -> mx.array:
        """Return the keys or values in their parts, (B, n_kv_heads, T, head_dim)."""
        return mx.dequantize(*parts, group_size=self.group_size, bits=self.bits).astype(dtype)

    def part_layout(self, head_dim: int, dtype: mx.Dtype) -> list[tuple[int, mx.Dtype]]:
        """Return the width and the dtype of each part of keys that come in `dtype`."""
        dtype, groups = backend.compute_dtype(dtype, quantized=True), head_dim // self.group_size
        return [(head_dim * self.bits // 32, mx.uint32), (groups, dtype), (groups, dtype)]

    def head_dim(self, parts: Parts) -> int:
        """Return the head dimension of what is in the parts."""
        return parts[1].shape[-1] * self.group_size

    def attend(self, queries: mx.array, keys: Parts, values: Parts, *, scale: float, mask: Mask) -> mx.array:
        """Return the attention of `queries` (B, n_heads, L, head_dim) over the parts of keys and values."""
        B, n_heads, L, head_dim = queries.shape
        _, n_kv_heads, T, _ = keys[0].shape
        # The query heads that share keys become rows of one product, so that neither is repeated.
        rows = (queries * scale).astype(keys[1].dtype).reshape(B, n_kv_heads, n_heads // n_kv_heads * L, head_dim)
        scores = self._times(rows, keys, transpose=True).reshape(B, n_heads, L, T)
        bias = explicit_mask(mask, L, T, mx.float32)
        if bias is not None:
            scores = scores.astype(mx.float32) + bias
        weights = mx.softmax(scores, axis=-1, precise=True).astype(values[1].dtype)
        output = self._times(weights.reshape(B, n_kv_heads, -1, T), values, transpose=False)
        return output.reshape(B, n_heads, L, head_dim).astype(queries.dtype)

    def _times(self, x: mx.array, parts: Parts, *, transpose: bool) -> mx.array:
        return mx.quantized_matmul(x, *parts, transpose=transpose, group_size=self.group_size, bits=self.bits)


Storage = PlainStorage | QuantizedStorage


def require_bits(value: object) -> None:
    """Raise OptionError for bits that a cache does not have."""
    number = plain(value)
    if type(number) is not int or number not in KV_BITS:
        raise OptionError(f"kv_bits is {shown(number)}; it must be {_listed(KV_BITS)}, or left out")


def require_group_size(value: object) -> None:
    """Raise OptionError for a group size that a cache does not have."""
    number = plain(value)
    if type(number) is not int or number not in KV_GROUP_SIZES:
        raise OptionError(f"kv_group_size is {shown(number)}; it must be {_listed(KV_GROUP_SIZES)}")


def _listed(values: Sequence[int]) -> str:
    *first, last = map(str, values)
    return f"{', '.join(first)} or {last}" if first else last


def attention(queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: Mask) -> mx.array:
    """Return the attention of `queries` (B, n_heads, L, head_dim) over keys and values (B, n_kv_heads, T, head_dim).

    The queries are the last L of the T tokens; `mask` says what each may see.
    """
    if backend.has_fused_kernels() or queries.shape[2] < _MANY_QUERIES:
        return scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
    keys = backend.for_products(keys)
    if mask == "causal" and queries.shape[2] > QUERIES_AT_ONCE:
        return _in_blocks(queries, keys, values, scale)
    return scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def _in_blocks(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    L, T = queries.shape[2], keys.shape[2]
    # A cut through keys stored by columns is copied, which after a long context costs memory and saves little.
    is_worth_cutting = T <= 2 * L
    blocks = []
    for start in range(0, L, QUERIES_AT_ONCE):
        block = queries[:, :, start : start + QUERIES_AT_ONCE]
        first = T - L + start
        end = first + block.shape[2]
        seen = end if is_worth_cutting else T
        mask = mx.arange(seen) <= mx.arange(first, end)[:, None]
        blocks.append(
            scaled_dot_product_attention(block, keys[:, :, :seen], values[:, :, :seen], scale=scale, mask=mask)
        )
    return mx.concatenate(blocks, axis=2)
