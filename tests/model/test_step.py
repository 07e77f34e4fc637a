"""One token of each row: `step` and `logits_after` beside the whole text at once, also on the way that a GPU takes."""

from pathlib import Path

import mlx.core as mx
import pytest
from measures import relative_error
from tiny_checkpoints import LLAMA, write_checkpoint

from helium_mlx import backend
from helium_mlx.kv_cache.batch import BatchKVCache
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.kv_cache.rotating import SPARE
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.loading import load_model

LENGTH, STEPS = 9, 6
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 8}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 3.0}

# Heads that can be quantized.
WIDE: dict[str, object] = {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
SHAPES: dict[str, dict[str, object]] = {
    "helium, MHA": {},
    "helium, GQA, biases": {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    "helium, MQA, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "helium, yarn": {"rope_parameters": YARN},
    "helium, dynamic": {"rope_parameters": DYNAMIC, "max_position_embeddings": 8},
    "llama, GQA, wide heads": {**LLAMA, "num_key_value_heads": 2, "head_dim": 32},
}


@pytest.fixture(params=[True, False], ids=["as on a GPU", "as on a CPU"])
def is_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(backend, "is_cpu", lambda: not request.param)
    return request.param


def ids(rows: int, length: int) -> mx.array:
    return mx.random.randint(4, 90, (rows, length), key=mx.random.key(1))


def stepped(model: HeliumForCausalLM, cache: list[KVCache], tokens: mx.array) -> mx.array:
    """Return the logits after each of `tokens` (B, STEPS), (STEPS, B, vocab_size)."""
    return mx.stack([model.logits_after(tokens[:, place], cache) for place in range(tokens.shape[1])])


@pytest.mark.usefixtures("is_gpu")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_one_by_one_are_the_text_at_once(shape: str, dtype: str, tmp_path: Path) -> None:
    overrides = SHAPES[shape]
    model = load_model(write_checkpoint(tmp_path, **overrides), dtype=dtype)
    text = ids(1, LENGTH + STEPS)
    cache = make_cache(model)
    model.next_logits(text[:, :LENGTH], cache)
    logits = stepped(model, cache, text[:, LENGTH:])[:, 0]
    for place in range(STEPS):
        # One by one, since frequencies of `dynamic` follow the length.
        expected = model(text[:, : LENGTH + place + 1], use_cache=False).logits[0, -1]
        if overrides.get("rope_parameters") is DYNAMIC:
            # Keys stay as they were rotated when they came.
            again = make_cache(model)
            model.next_logits(text[:, :LENGTH], again)
            for earlier in range(place):
                model(text[:, LENGTH + earlier : LENGTH + earlier + 1], past_key_values=again)
            expected = model(text[:, LENGTH + place : LENGTH + place + 1], past_key_values=again).logits[0, -1]
        assert relative_error(logits[place], expected) < (1e-5 if dtype == "float32" else 3e-2)


@pytest.mark.usefixtures("is_gpu")
@pytest.mark.parametrize("options", [{"max_kv_size": 7}, {"kv_bits": 8, "kv_group_size": 32}], ids=str)
def test_every_cache_takes_a_token_as_it_takes_several(options: dict[str, int], tmp_path: Path) -> None:
    model = load_model(write_checkpoint(tmp_path, **WIDE))
    count = SPARE + 20
    text = ids(1, LENGTH + count)
    cache, again = make_cache(model, **options), make_cache(model, **options)
    model.next_logits(text[:, :LENGTH], cache)
    model.next_logits(text[:, :LENGTH], again)
    logits = stepped(model, cache, text[:, LENGTH:])[:, 0]
    for place in range(count):
        # Attentions are computed step by step, and not by `step`.
        output = model(text[:, LENGTH + place : LENGTH + place + 1], past_key_values=again, output_attentions=True)
        # Packed keys add up in another order than unpacked ones, and what comes after may round to another code.
        assert relative_error(logits[place], output.logits[0, -1]) < (1e-3 if "kv_bits" in options else 1e-5)
    for one, other in zip(cache, again, strict=True):
        assert (one.offset, one.slots) == (other.offset, other.slots)


@pytest.mark.usefixtures("is_gpu")
def test_a_batch_of_rows_of_different_lengths_steps_as_each_alone(tmp_path: Path) -> None:
    model = load_model(write_checkpoint(tmp_path, num_key_value_heads=2))
    text, padding = ids(3, LENGTH + STEPS), (0, 3, 7)
    layers = [BatchKVCache(padding) for _ in model.model.layers]
    model.next_logits(text[:, :LENGTH], list(layers), layers[0].lengths)
    logits = mx.stack([
        model.logits_after(text[:, LENGTH + place], list(layers), layers[0].lengths) for place in range(STEPS)
    ])  # fmt: skip
    for row, left in enumerate(padding):
        cache = make_cache(model)
        model.next_logits(text[row : row + 1, left:LENGTH], cache)
        alone = stepped(model, cache, text[row : row + 1, LENGTH:])
        assert relative_error(logits[:, row], alone[:, 0]) < 1e-5


def test_values_are_not_turned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backend, "is_cpu", lambda: False)
    model = load_model(write_checkpoint(tmp_path))
    heads = mx.random.normal((3, 4, 1, 16), key=mx.random.key(0))
    turned = model.model._rope.of_groups(100, 2)(heads)
    assert mx.array_equal(turned[2], heads[2])
    assert relative_error(turned[:2], model.model._rope.at(100, 1)(heads[:2])) < 1e-6


# Not packed ones: MLX's product on the CPU copies what has room behind it; on Metal it takes it as it is.
@pytest.mark.parametrize("options", [{}, {"max_kv_size": 500}], ids=str)
@pytest.mark.usefixtures("is_gpu")
def test_a_token_copies_no_cache(options: dict[str, int], tmp_path: Path) -> None:
    model = load_model(write_checkpoint(tmp_path, **WIDE))
    cache = make_cache(model, **options)
    for layer in cache:
        layer.reserve(2000)
    mx.eval(model.next_logits(ids(1, 1000), cache), [layer.state for layer in cache])
    mx.eval(model.logits_after(ids(1, 1)[0], cache))
    held = cache[0].nbytes
    for _ in range(3):
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(model.logits_after(ids(1, 1)[0], cache))
        assert mx.get_peak_memory() - before < held / 2
