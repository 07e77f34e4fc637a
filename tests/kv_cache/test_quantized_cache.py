"""The quantized caches next to explicit attention over keys and values that were quantized and unpacked again."""

import mlx.core as mx
import pytest
from measures import relative_error
from tiny_checkpoints import LLAMA, config_values

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import GenerationError
from helium_mlx.kv_cache.cache import KVCache, QuantizedKVCache
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.kv_cache.masks import Mask
from helium_mlx.kv_cache.rotating import SPARE, RotatingKVCache
from helium_mlx.kv_cache.storage import KV_BITS
from helium_mlx.model.helium import HeliumForCausalLM

SHAPES: dict[str, dict[str, object]] = {
    "mha": {"head_dim": 32, "hidden_size": 128},
    "gqa": {"head_dim": 32, "hidden_size": 128, "num_key_value_heads": 2},
    "llama-mqa": {**LLAMA, "head_dim": 64, "num_key_value_heads": 1},
}


@pytest.fixture(scope="module")
def models() -> dict[str, HeliumForCausalLM]:
    mx.random.seed(1)
    return {
        name: HeliumForCausalLM(HeliumConfig.from_dict(config_values(**values, initializer_range=0.1)))
        for name, values in SHAPES.items()
    }


def normal(*shape: int, seed: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def rounded(x: mx.array, bits: int, group_size: int) -> mx.array:
    """Quantize by hand: each group's numbers at the nearest of 2^bits even steps that MLX's scale and bias give."""
    _, scales, biases = mx.quantize(x, group_size=group_size, bits=bits)
    groups = x.reshape(*x.shape[:-1], -1, group_size)
    codes = mx.clip(mx.round((groups - biases[..., None]) / scales[..., None]), 0, 2**bits - 1)
    return (codes * scales[..., None] + biases[..., None]).reshape(x.shape)


def slow_attention(queries: mx.array, keys: mx.array, values: mx.array, scale: float, allowed: mx.array) -> mx.array:
    """Attend head by head; `allowed` is boolean (B, 1, L, T)."""
    n_heads, n_kv_heads = queries.shape[1], keys.shape[1]
    outputs = []
    for head in range(n_heads):
        kv = head * n_kv_heads // n_heads
        scores = queries[:, head] @ keys[:, kv].swapaxes(-1, -2) * scale
        weights = mx.softmax(mx.where(allowed[:, 0], scores, -1e30), axis=-1)
        outputs.append(weights @ values[:, kv])
    return mx.stack(outputs, axis=1)


@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (8, 32), (4, 64), (6, 32), (5, 32)])
@pytest.mark.parametrize("mask", ["none", "causal", "boolean", "additive", "padding"])
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(4, 4), (6, 2), (4, 1)])
def test_attention_is_that_of_the_rounded_keys_and_values(
    bits: int, group_size: int, mask: str, n_heads: int, n_kv_heads: int
) -> None:
    B, past, L, head_dim = 2, 11, 3, 64
    T = past + L
    keys, values = normal(B, n_kv_heads, T, head_dim, seed=0), normal(B, n_kv_heads, T, head_dim, seed=1)
    queries, cache = normal(B, n_heads, L, head_dim, seed=2), QuantizedKVCache(bits, group_size)
    cache.update_and_fetch(keys[:, :, :past], values[:, :, :past])
    causal = (mx.arange(past, T)[:, None] >= mx.arange(T))[None, None]
    padding = mx.array([[0, 0, 0, *[1] * (T - 3)], [1] * T])[:, None, None, :] == 1
    allowed = {"none": mx.ones((1, 1, L, T), mx.bool_), "causal": causal, "boolean": causal & padding}.get(
        mask, causal & padding
    )
    forms: dict[str, Mask] = {"none": None, "causal": "causal", "boolean": allowed}
    given = forms.get(mask, mx.where(allowed, 0.0, mx.finfo(mx.float32).min))
    output = cache.attend(queries, keys[:, :, past:], values[:, :, past:], scale=0.2, mask=given)
    expected = slow_attention(queries, rounded(keys, bits, group_size), rounded(values, bits, group_size), 0.2, allowed)
    assert output.shape == expected.shape
    assert relative_error(output, expected) < 2e-5


def logits_of(model: HeliumForCausalLM, ids: mx.array, cache: list[KVCache], lengths: list[int]) -> mx.array:
    logits, start = [], 0
    for length in lengths:
        out = model(ids[:, start : start + length], past_key_values=cache).logits
        assert out is not None
        logits.append(out)
        start += length
    return mx.concatenate(logits, axis=1)


def ids_of(model: HeliumForCausalLM, length: int, rows: int = 1) -> mx.array:
    return mx.random.randint(0, model.config.vocab_size, (rows, length), key=mx.random.key(5)).astype(mx.int32)


@pytest.mark.parametrize("shape", SHAPES)
def test_fewer_bits_cost_more_and_eight_little(models: dict[str, HeliumForCausalLM], shape: str) -> None:
    model = models[shape]
    ids = ids_of(model, 40, rows=2)
    exact = logits_of(model, ids, make_cache(model), [40])
    errors = {
        bits: relative_error(logits_of(model, ids, make_cache(model, kv_bits=bits, kv_group_size=32), [40]), exact)
        for bits in KV_BITS
    }
    assert errors[4] > errors[5] > errors[6] > errors[8] > 0
    # The largest error over the largest logit of these models: 8 bits 0.8 to 1.3 %, 4 bits 16 to 21 %.
    assert errors[8] < 0.025
    assert errors[4] < 0.4


@pytest.mark.parametrize("max_kv_size", [None, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_chunked_is_whole_is_token_by_token(
    models: dict[str, HeliumForCausalLM], shape: str, max_kv_size: int | None
) -> None:
    model, total = models[shape], 3 * SPARE
    ids = ids_of(model, total)

    def logits(lengths: list[int]) -> mx.array:
        return logits_of(model, ids, make_cache(model, max_kv_size=max_kv_size, kv_bits=8, kv_group_size=32), lengths)

    whole = logits([total])
    for lengths in ([1] * total, [40, 1, 1, total - 42]):
        # Codes may flip where rounding differs in the last place.
        assert relative_error(logits(lengths), whole) < 5e-3


@pytest.mark.parametrize("bits", [8, 4])
def test_rotating_and_quantized_go_together(bits: int) -> None:
    max_size, total, heads, head_dim = 10, 120, 2, 32
    keys, values = normal(2, heads, total, head_dim, seed=0), normal(2, heads, total, head_dim, seed=1)
    queries = normal(2, 2 * heads, total, head_dim, seed=2)
    rows = [[k <= q and (k < 1 or k > q - (max_size - 1)) for k in range(total)] for q in range(total)]
    expected = slow_attention(
        queries, rounded(keys, bits, 32), rounded(values, bits, 32), 0.2, mx.array(rows)[None, None]
    )
    cache, start, outputs = RotatingKVCache(max_size, bits=bits, group_size=32), 0, []
    for length in (60, *[1] * 50, 8, 1, 1):
        new = slice(start, start + length)
        mask = cache.mask(length)
        outputs.append(cache.attend(queries[:, :, new], keys[:, :, new], values[:, :, new], scale=0.2, mask=mask))
        start += length
    assert relative_error(mx.concatenate(outputs, axis=2), expected) < 2e-5
    assert cache.state[0].dtype == mx.uint32
    assert {part.shape[2] for part in cache.state} == {max_size + SPARE}


@pytest.mark.parametrize("max_kv_size", [None, 9])
def test_padded_rows_of_a_batch_are_as_alone(models: dict[str, HeliumForCausalLM], max_kv_size: int | None) -> None:
    model = models["gqa"]
    long, short = ids_of(model, 12), ids_of(model, 7)[:, ::-1]
    # With the window, padding on the left would stand where the first token is kept.
    side = "right" if max_kv_size else "left"
    padding = mx.full((1, 5), 3, mx.int32)
    row = mx.concatenate([padding, short] if side == "left" else [short, padding], axis=1)
    mask = mx.array([[1] * 12, [0] * 5 + [1] * 7 if side == "left" else [1] * 7 + [0] * 5])
    positions = mx.maximum(mx.cumsum(mask, axis=1) - 1, 0)

    def cache() -> list[KVCache]:
        return make_cache(model, max_kv_size=max_kv_size, kv_bits=8, kv_group_size=32)

    both = model(
        mx.concatenate([long, row]), attention_mask=mask, position_ids=positions, past_key_values=cache()
    ).logits
    alone = model(short, past_key_values=cache()).logits
    assert both is not None
    assert alone is not None
    ours = both[1:, 5:] if side == "left" else both[1:, :7]
    assert relative_error(ours, alone) < 5e-3


def test_weights_of_attention_can_be_had(models: dict[str, HeliumForCausalLM]) -> None:
    model = models["gqa"]
    ids = ids_of(model, 20)
    expected = logits_of(model, ids, make_cache(model, kv_bits=8, kv_group_size=32), [20])
    output = model(ids, past_key_values=make_cache(model, kv_bits=8, kv_group_size=32), output_attentions=True)
    assert output.logits is not None
    assert relative_error(output.logits, expected) < 1e-4


def test_a_cache_goes_on_in_the_models_dtype_whatever_it_stores() -> None:
    cache = QuantizedKVCache(8, 32)
    x = normal(1, 2, 4, 32, seed=0).astype(mx.bfloat16)
    output = cache.attend(x, x, x, scale=1.0, mask="causal")
    assert output.dtype == cache.dtype == mx.bfloat16
    keys, _ = cache.update_and_fetch(x, x)
    assert keys.dtype == mx.bfloat16
    assert cache.heads_and_dim == (2, 32)


def test_memory_is_what_the_bits_say() -> None:
    x, sizes = normal(1, 2, 256, 64, seed=0), {}
    for bits in (4, 8):
        cache = QuantizedKVCache(bits, 64)
        cache.update_and_fetch(x, x)
        sizes[bits] = cache.nbytes
    plain = KVCache()
    plain.update_and_fetch(x, x)
    assert plain.nbytes == 2 * 2 * 256 * 64 * 4
    assert sizes[8] == 2 * 2 * 256 * (64 + 2 * 4)
    assert sizes[4] == 2 * 2 * 256 * (32 + 2 * 4)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"kv_bits": 3}, "kv_bits is 3; it must be 4, 5, 6 or 8, or left out"),
        ({"kv_bits": 16}, "kv_bits is 16; it must be 4, 5, 6 or 8, or left out"),
        ({"kv_bits": True}, "kv_bits is True; it must be"),
        ({"kv_bits": "8"}, "kv_bits is '8'; it must be"),
        ({"kv_bits": 8, "kv_group_size": 48}, "kv_group_size is 48; it must be 32, 64 or 128"),
        ({"kv_bits": 8, "kv_group_size": 128}, "does not divide the model's head_dim 64; give 32 or 64"),
        ({"kv_bits": 8, "kv_group_size": 128, "max_kv_size": 9}, "does not divide the model's head_dim 64"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_once(
    models: dict[str, HeliumForCausalLM], options: dict[str, object], problem: str
) -> None:
    with pytest.raises(GenerationError, match=problem) as caught:
        make_cache(models["llama-mqa"], **options)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value)


def test_heads_that_no_group_divides_are_refused() -> None:
    model = HeliumForCausalLM(HeliumConfig.from_dict(config_values(**LLAMA, head_dim=48)))
    with pytest.raises(GenerationError, match="head_dim 48; no group size fits; leave kv_bits out"):
        make_cache(model, kv_bits=8)
