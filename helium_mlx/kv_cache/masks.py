"""From transformers' forms of `attention_mask` and `position_ids` to the mask that attention takes.

Masks are additive with the dtype's smallest finite number where nothing is to be seen, as transformers' eager
attention has them: a row that may see nothing then attends evenly, where -inf would give NaN. In float16 that number
plus a score is -inf all the same, so there masks are added in float32 (`scaled_dot_product_attention`).
"""

import mlx.core as mx

from helium_mlx import backend

Mask = str | mx.array | None
"""What `mx.fast.scaled_dot_product_attention` takes: "causal", boolean (True = attend), additive, or nothing."""


def causal_mask(length: int) -> Mask:
    """Return the mask for `length` queries at the end of what is cached; a single query sees everything."""
    return None if length == 1 else "causal"


def attention_bias(
    attention_mask: mx.array | None, position_ids: mx.array | None, *, length: int, offset: int, dtype: mx.Dtype
) -> Mask:
    """Return the mask of `length` queries after `offset` cached tokens; None stands for what the cache prescribes.

    `attention_mask`: 2-D (B, offset + length), nonzero = a token; or 4-D (B or 1, heads or 1, length, offset + length),
    boolean or 0 and 1 (1 = attend), or floats, which are added. `position_ids` (B or 1, length) is to be given only
    where sequences may be packed one after the other: each gets its own causal block.
    """
    if attention_mask is None:
        sequences = None if position_ids is None else packed_sequences(position_ids)
        if sequences is None:
            return None
        allowed = _causal(length, offset) & (sequences[:, None, :, None] == sequences[:, None, None, :])
        return _additive(allowed, dtype)
    if attention_mask.ndim == 4:
        if not mx.issubdtype(attention_mask.dtype, mx.floating):
            return _additive(attention_mask != 0, dtype)
        # float32's smallest number would become -inf in bfloat16 and float16.
        return mx.maximum(attention_mask.astype(mx.float32), mx.finfo(dtype).min).astype(dtype)
    return _additive(_causal(length, offset) & (attention_mask != 0)[:, None, None, :], dtype)


def explicit_mask(mask: Mask, length: int, total: int, dtype: mx.Dtype) -> mx.array | None:
    """Return a mask of `dtype` that can be added to scores (..., length, total): "causal" and boolean ones spelled out.

    The smallest number of a narrower dtype, which hides, becomes that of `dtype`.
    """
    if isinstance(mask, str):
        mask = _causal(length, total - length)
    if mask is None or mask.dtype == dtype:
        return mask
    if mask.dtype == mx.bool_:
        return _additive(mask, dtype)
    return mx.where(mask > mx.finfo(mask.dtype).min, mask.astype(dtype), mx.finfo(dtype).min)


def scaled_dot_product_attention(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: Mask
) -> mx.array:
    """Do what MLX's function of this name does, without scores that overflow where they are masked."""
    if not isinstance(mask, mx.array) or mask.dtype != mx.float16:
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
    mask = explicit_mask(mask, queries.shape[2], keys.shape[2], mx.float32)
    wide = (x.astype(mx.float32) for x in (queries, keys, values))
    return mx.fast.scaled_dot_product_attention(*wide, scale=scale, mask=mask).astype(queries.dtype)


def mask_of_last_query(mask: Mask) -> Mask:
    """Return the mask of the last query alone; under a causal one it sees everything."""
    return None if mask is None or isinstance(mask, str) else mask[..., -1:, :]


def packed_sequences(position_ids: mx.array) -> mx.array | None:
    """Number the sequences packed in each row, shape of `position_ids`; None if each row is known to hold a single one.

    A new sequence starts wherever a position does not follow the one before it. The array is read.
    """
    # Differences of an unsigned dtype would wrap around.
    positions = position_ids.astype(mx.int32)
    breaks = positions[:, 1:] - positions[:, :-1] != 1
    if backend.value_of(breaks.any()) is False:
        return None
    first = mx.zeros((position_ids.shape[0], 1), mx.int32)
    return mx.concatenate([first, mx.cumsum(breaks.astype(mx.int32), axis=1)], axis=1)


def _causal(length: int, offset: int) -> mx.array:
    return mx.arange(offset, offset + length)[:, None] >= mx.arange(offset + length)


def _additive(allowed: mx.array, dtype: mx.Dtype) -> mx.array:
    return mx.where(allowed, mx.array(0, dtype), mx.array(mx.finfo(dtype).min, dtype))
