"""Attention in blocks against the same sums written out; every block size and both ways of leaving keys out."""

import math

import mlx.core as mx
import pytest

from helium_mlx.kv_cache import storage as attention_module
from helium_mlx.kv_cache.storage import QUERIES_AT_ONCE, attention

SCALE = 0.3


def written_out(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    """Return causal attention, one query and one head at a time."""
    B, n_heads, L, head_dim = queries.shape
    n_kv_heads, T = keys.shape[1:3]
    output = mx.zeros((B, n_heads, L, head_dim))
    for row in range(B):
        for head in range(n_heads):
            own = head * n_kv_heads // n_heads
            for place in range(L):
                seen = T - L + place + 1
                scores = (keys[row, own, :seen] * queries[row, head, place]).sum(axis=-1) * SCALE
                weights = mx.exp(scores - scores.max())
                output[row, head, place] = (weights[:, None] * values[row, own, :seen]).sum(axis=0) / weights.sum()
    return output


def random_inputs(L: int, T: int, *, heads: int = 2, kv_heads: int = 2, rows: int = 1) -> list[mx.array]:
    """Return queries, keys and values."""
    keys = mx.random.split(mx.random.key(L * 1000 + T), 3)
    shapes = [(rows, heads, L, 8), (rows, kv_heads, T, 8), (rows, kv_heads, T, 8)]
    return [mx.random.normal(shape, key=key) for shape, key in zip(shapes, keys, strict=True)]


@pytest.mark.parametrize(("L", "T"), [(1, 9), (3, 9), (5, 5), (70, 70), (70, 90), (70, 150), (130, 131)])
def test_causal_attention_is_the_sum_over_what_each_query_may_see(L: int, T: int) -> None:
    inputs = random_inputs(L, T)
    mask = "causal" if L > 1 else None
    assert mx.allclose(attention(*inputs, scale=SCALE, mask=mask), written_out(*inputs), atol=1e-5)


def test_query_heads_share_keys_and_rows_do_not() -> None:
    inputs = random_inputs(QUERIES_AT_ONCE + 3, QUERIES_AT_ONCE + 3, heads=4, kv_heads=2, rows=2)
    assert mx.allclose(attention(*inputs, scale=SCALE, mask="causal"), written_out(*inputs), atol=1e-5)


def test_a_mask_of_the_caller_is_followed_as_it_is() -> None:
    queries, keys, values = random_inputs(QUERIES_AT_ONCE + 3, QUERIES_AT_ONCE + 3)
    only_first = mx.arange(QUERIES_AT_ONCE + 3) == 0
    output = attention(queries, keys, values, scale=SCALE, mask=only_first[None])
    assert mx.allclose(output, mx.broadcast_to(values[:, :, :1], output.shape), atol=1e-6)


@pytest.mark.parametrize("T", [150, 600])
def test_what_a_query_may_not_see_does_not_touch_it_even_if_infinite(T: int) -> None:
    queries, keys, values = random_inputs(150, T)
    keys[:, :, -1:] = math.inf
    whole = attention(queries, keys, values, scale=SCALE, mask="causal")
    assert mx.isfinite(whole[:, :, :-1]).all()


def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = random_inputs(150, 400)
    blocks = attention(*inputs, scale=SCALE, mask="causal")
    monkeypatch.setattr(attention_module, "QUERIES_AT_ONCE", 1000)
    assert mx.allclose(blocks, attention(*inputs, scale=SCALE, mask="causal"), atol=1e-6)
