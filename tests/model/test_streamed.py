from pathlib import Path

import mlx.core as mx
import pytest
from measures import relative_error
from tiny_checkpoints import CASES, config_values, write_checkpoint

import helium_mlx
from helium_mlx.checkpoint import row_blocks as blocks
from helium_mlx.checkpoint.checkpoint import open_checkpoint
from helium_mlx.checkpoint.layout import Architecture
from helium_mlx.diagnostics import selfcheck_cases
from helium_mlx.kv_cache.make import new_cache
from helium_mlx.model.helium import HeliumForCausalLM, HeliumModel
from helium_mlx.model.loading import load_model
from helium_mlx.model.serialization import load_pretrained
from helium_mlx.model.streamed import MODEL_CLASSES, streamed_model

IDS = mx.array([[1, 10, 20, 30, 40], [1, 11, 21, 31, 41]])


@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_checkpoint(tmp_path, **CASES[name])
    monkeypatch.setattr(blocks, "ROW_BLOCK_BYTES", 2000)
    with streamed_model(open_checkpoint(tmp_path)) as model:
        assert isinstance(model, HeliumForCausalLM)
        logits = model(IDS).logits
        again = model(IDS).logits
    assert relative_error(logits, load_model(tmp_path, dtype="float32")(IDS).logits) < 1e-5
    assert mx.array_equal(logits, again)


@pytest.mark.parametrize("options", [{}, {"q_bits": 8, "q_group_size": 32}, {"q_mode": "mxfp4"}])
def test_quantized_logits_are_the_models(tmp_path: Path, options: dict[str, object]) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True, verify=False, **options)  # pyright: ignore
    with streamed_model(open_checkpoint(tmp_path / "x")) as model:
        assert isinstance(model, HeliumForCausalLM)
        assert relative_error(model(IDS).logits, load_model(tmp_path / "x", dtype="float32")(IDS).logits) < 1e-5


def test_a_cache_continues_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    with streamed_model(open_checkpoint(tmp_path)) as model:
        assert isinstance(model, HeliumForCausalLM)
        whole, cache = model(IDS).logits, new_cache(3)
        pieces = [model(IDS[:, part], past_key_values=cache).logits for part in (slice(0, 3), slice(3, 4), slice(4, 5))]
    assert relative_error(mx.concatenate(pieces, axis=1), whole) < 1e-5


@pytest.mark.parametrize("architecture", ["Model", "ForSequenceClassification", "ForTokenClassification"])
def test_every_head_is_streamed(tmp_path: Path, architecture: Architecture) -> None:
    selfcheck_cases.write_checkpoint(tmp_path, config_values(num_labels=3), architecture)
    checkpoint = open_checkpoint(tmp_path, architecture=None)
    assert checkpoint.architecture == architecture
    expected = load_pretrained(MODEL_CLASSES[architecture], tmp_path)[0](IDS)  # pyright: ignore
    with streamed_model(checkpoint) as model:
        found = model(IDS)  # pyright: ignore
    key = "last_hidden_state" if isinstance(model, HeliumModel) else "logits"
    assert relative_error(found[key], expected[key]) < 1e-5


def test_weights_do_not_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ROW_BLOCK_BYTES", 1 << 19)
    peaks, sizes = [], []
    for layers in (2, 12):
        directory = tmp_path / str(layers)
        write_checkpoint(
            directory, hidden_size=256, intermediate_size=1024, num_attention_heads=4, num_key_value_heads=4,
            head_dim=64, num_hidden_layers=layers,
        )  # fmt: skip
        with streamed_model(open_checkpoint(directory)) as model:
            mx.reset_peak_memory()
            before = mx.get_active_memory()
            mx.eval(model(IDS, use_cache=False).logits)  # pyright: ignore
            peaks.append(mx.get_peak_memory() - before)
        sizes.append((directory / "model.safetensors").stat().st_size)
    assert peaks[1] - peaks[0] < 0.03 * (sizes[1] - sizes[0])
