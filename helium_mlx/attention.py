"""Attention over plain keys and values: MLX's own call, and on the CPU, where that is no single kernel, in blocks.

Without a kernel, every query is multiplied with every key, and what the causal mask hides is thrown away. A block of
queries leaves out the keys behind it, half the work where a prompt begins, and its scores take the memory of a block.
Leaving them out changes no number: their weight is 0.
"""

import mlx.core as mx

from helium_mlx import backend
from helium_mlx.masks import Mask

QUERIES_AT_ONCE = 64
"""In a block. 32 to 256 are as fast, and the larger take more memory."""

# For fewer queries, storing the keys anew costs what it saves.
_MANY_QUERIES = 4


def attention(queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: Mask) -> mx.array:
    """Return the attention of `queries` (B, n_heads, L, head_dim) over keys and values (B, n_kv_heads, T, head_dim).

    The queries are the last L of the T tokens; `mask` says what each may see.
    """
    if backend.has_fused_kernels() or queries.shape[2] < _MANY_QUERIES:
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
    keys = backend.for_products(keys)
    if mask == "causal" and queries.shape[2] > QUERIES_AT_ONCE:
        return _in_blocks(queries, keys, values, scale)
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def _in_blocks(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    L, T = queries.shape[2], keys.shape[2]
    # A cut through keys stored by columns is copied, which behind a long context costs memory and saves little.
    is_worth_cutting = T <= 2 * L
    blocks = []
    for start in range(0, L, QUERIES_AT_ONCE):
        block = queries[:, :, start : start + QUERIES_AT_ONCE]
        first = T - L + start
        behind = first + block.shape[2]
        seen = behind if is_worth_cutting else T
        mask = mx.arange(seen) <= mx.arange(first, behind)[:, None]
        blocks.append(
            mx.fast.scaled_dot_product_attention(block, keys[:, :, :seen], values[:, :, :seen], scale=scale, mask=mask)
        )
    return mx.concatenate(blocks, axis=2)
