"""The memory table counts what a model really takes, at sizes where that can be looked up."""

import sys
from pathlib import Path

import mlx.core as mx
import pytest
from bundle_samples import write_text_checkpoint
from processes import EXAMPLES

sys.path.insert(0, str(EXAMPLES))

import memory_table

from helium_mlx import HeliumConfig, convert, load
from helium_mlx.kv_cache.make import make_cache

# Wide enough that the working set is far above what MLX rounds sizes up to.
SMALL = {
    "num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 704, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 2048,
}  # fmt: skip


@pytest.mark.parametrize("bits", memory_table.BITS)
def test_weights_and_cache_are_those_of_a_converted_model(tmp_path: Path, bits: int) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32, "num_key_value_heads": 2}
    source = write_text_checkpoint(tmp_path / "source", model_type="llama", **sizes)  # pyright: ignore
    convert(str(source), str(tmp_path / "quantized"), quantize=True, q_bits=bits, dtype="bfloat16", verify=False)
    model, _ = load(tmp_path / "quantized", dtype="bfloat16")
    counted = memory_table.memory(model.config, bits, tokens=40)
    assert counted.weights == sum(tensor.nbytes for tensor in model.tensors().values())
    cache = make_cache(model)
    for layer in cache:
        layer.reserve(40)
    mx.eval(model.next_logits(mx.ones((1, 40), mx.int32), cache))
    assert counted.cache == sum(layer.nbytes for layer in cache)


def test_a_measured_working_set_is_near_the_computed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_table, "CONTEXTS", (1024,))
    ((found, computed),) = memory_table.measured("1-2b", SMALL)
    assert computed / 3 < found < computed * 3


def test_the_table_has_a_row_for_each_context_and_width(capsys: pytest.CaptureFixture[str]) -> None:
    assert memory_table.main([]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(memory_table.CONTEXTS) * len(memory_table.BITS)
    # The figures of facts that are known: 245,760 bytes a token, 4.5 bits a weight.
    assert rows[6].split(" | ")[1:4] == ["4", "1.22", "1.01"]


def test_the_working_set_follows_the_widest_part() -> None:
    values = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 2, "head_dim": 128}
    config = HeliumConfig.from_dict({"model_type": "llama", "num_key_value_heads": 2, **values})
    fused = memory_table.working_set(config, 4096, size=2, is_fused=True)
    assert fused == memory_table.working_set(config, 1024, size=2, is_fused=True)
    assert memory_table.working_set(config, 4096, size=4, is_fused=False) > 2 * 4 * 2 * memory_table.STEP * 4096
