import mlx.core as mx
import pytest
from tiny_checkpoints import LLAMA, config_values

from helium_mlx import backend
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import GenerationError
from helium_mlx.kv_cache import memory as cache_memory
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.kv_cache.memory import (
    bytes_in_memory,
    bytes_per_token,
    cache_bytes,
    describe,
    require_batch_fits,
    require_fits,
    working_set_bytes,
)
from helium_mlx.kv_cache.rotating import SPARE
from helium_mlx.model.helium import HeliumForCausalLM

# Of the published checkpoints' configs.
PREVIEW = HeliumConfig.from_dict(
    config_values(
        hidden_size=2560,
        num_hidden_layers=24,
        num_attention_heads=20,
        num_key_value_heads=20,
        head_dim=128,
        intermediate_size=7040,
        max_position_embeddings=4096,
    )
)
ONE_2B = HeliumConfig.from_dict(
    config_values(
        **LLAMA,
        hidden_size=2048,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=8192,
        max_position_embeddings=4096,
    )
)
GB = 10**9


def test_what_a_token_takes_in_the_published_models() -> None:
    assert bytes_per_token(PREVIEW, dtype=mx.bfloat16) == 245_760
    assert bytes_per_token(ONE_2B, dtype=mx.bfloat16) == 114_688
    assert bytes_per_token(PREVIEW, dtype=mx.float32) == 2 * 245_760


@pytest.mark.parametrize(("on_cpu", "scale_bytes"), [(False, 2), (True, 4)])
def test_scales_and_biases_are_counted(monkeypatch: pytest.MonkeyPatch, on_cpu: bool, scale_bytes: int) -> None:
    monkeypatch.setattr(backend, "is_cpu", lambda: on_cpu)
    for bits, group_size in ((8, 64), (4, 32), (5, 128)):
        each = 128 * bits // 8 + 2 * scale_bytes * (128 // group_size)
        ours = bytes_per_token(PREVIEW, kv_bits=bits, kv_group_size=group_size, dtype=mx.bfloat16)
        assert ours == 2 * 24 * 20 * each


@pytest.mark.parametrize("options", [{}, {"max_kv_size": 9}, {"kv_bits": 4}, {"kv_bits": 8, "max_kv_size": 40}])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_what_is_said_is_what_is_then_held(options: dict[str, int], dtype: mx.Dtype) -> None:
    options = {**options, "kv_group_size": 32}
    model = HeliumForCausalLM(HeliumConfig.from_dict(config_values(**LLAMA, head_dim=32, num_key_value_heads=2)))
    model.set_dtype(dtype)
    for tokens in (20, 100):
        cache = make_cache(model, **options)
        for layer in cache:
            layer.reserve(tokens)
        model(mx.zeros((1, tokens), mx.int32), past_key_values=cache)
        assert sum(layer.nbytes for layer in cache) == cache_bytes(model.config, tokens, dtype=dtype, **options)


def test_the_line_to_print() -> None:
    assert describe(PREVIEW, 4096) == "KV cache: 245,760 bytes a token, 1.01 GB for 4096 tokens"
    assert describe(ONE_2B, 4096) == "KV cache: 114,688 bytes a token, 0.47 GB for 4096 tokens"
    assert describe(PREVIEW, 4096, max_kv_size=512) == (
        "KV cache: 245,760 bytes a token, 0.13 GB for the 544 of 4096 tokens that it keeps"
    )


def test_a_run_that_fits_is_let_through() -> None:
    needed = 4096 * 245_760
    require_fits(GB, PREVIEW, 4096, limit=GB + needed)
    with pytest.raises(GenerationError):
        require_fits(GB, PREVIEW, 4096, limit=GB + needed - 1)


def test_a_run_that_does_not_fit_is_refused_with_figures_and_flags() -> None:
    limit = 5_436_000_000
    with pytest.raises(GenerationError) as caught:
        require_fits(4_800_000_000, PREVIEW, 4096, limit=limit)
    size = 636_000_000 // 245_760 - SPARE
    assert str(caught.value) == (
        "weights of 4.80 GB and a KV cache of 1.01 GB for 4096 tokens are over the 5.44 GB that this device "
        f"recommends; give kv_bits 8 or max_kv_size {size}"
    )
    require_fits(4_800_000_000, PREVIEW, 4096, limit=limit, kv_bits=8)
    require_fits(4_800_000_000, PREVIEW, 4096, limit=limit, max_kv_size=size)
    with pytest.raises(GenerationError):
        require_fits(4_800_000_000, PREVIEW, 4096, limit=limit, max_kv_size=size + 1)


@pytest.mark.parametrize(
    ("room", "options", "remedy"),
    [
        (400_000_000, {}, "give kv_bits 4 or max_kv_size 1595"),
        (400_000_000, {"kv_bits": 8}, "give kv_bits 4 or max_kv_size"),
        (200_000_000, {"kv_bits": 4}, "give max_kv_size"),
        (10_000_000, {}, "give max_kv_size 8"),
        (1_000_000, {}, "take a smaller or quantized model"),
        (-5, {}, "take a smaller or quantized model"),
    ],
)
def test_only_flags_that_help_are_named(room: int, options: dict[str, int], remedy: str) -> None:
    with pytest.raises(GenerationError) as caught:
        require_fits(4 * GB, PREVIEW, 4096, limit=4 * GB + room, **options)  # pyright: ignore[reportArgumentType]
    came = str(caught.value).partition("recommends; ")[2]
    assert came.startswith(remedy)
    assert "\n" not in came


def test_a_group_size_is_named_where_the_default_does_not_fit() -> None:
    config = HeliumConfig.from_dict(config_values(**LLAMA, head_dim=32))
    needed = cache_bytes(config, 1000, dtype=mx.float32)
    with pytest.raises(GenerationError, match="kv_bits 8 with kv_group_size 32 or"):
        require_fits(0, config, 1000, dtype=mx.float32, limit=needed // 2)


def test_a_batch_is_as_many_rows_as_long_as_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    model = HeliumForCausalLM(HeliumConfig.from_dict(config_values(**LLAMA)))
    row = cache_bytes(model.config, 50, dtype=model.model.norm.weight.dtype)
    monkeypatch.setattr(cache_memory, "working_set_bytes", lambda: bytes_in_memory(model) + 4 * row)
    require_batch_fits(model, 4, 50)
    with pytest.raises(GenerationError, match=r"for 5 rows of 50 tokens are over .* recommends; give batch_size 4$"):
        require_batch_fits(model, 5, 50)
    with pytest.raises(GenerationError, match=r"for 5 rows .*; take a smaller or quantized model"):
        require_batch_fits(model, 5, 50 * 5)


def test_the_working_set_is_metals_or_all_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (working_set_bytes() or 0) > 10**8
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 5 * GB})
    assert working_set_bytes() == 5 * GB

    def unknown(_: str) -> int:
        raise ValueError

    monkeypatch.setattr(mx, "device_info", dict)
    monkeypatch.setattr(cache_memory.os, "sysconf", unknown)
    assert working_set_bytes() is None
    require_fits(10**15, PREVIEW, 4096)
