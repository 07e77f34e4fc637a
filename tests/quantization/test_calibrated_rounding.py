from collections import defaultdict
from pathlib import Path

import mlx.core as mx
import pytest
from tiny_checkpoints import LLAMA, write_checkpoint

from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.checkpoint import open_checkpoint
from helium_mlx.checkpoint.quantization_settings import QuantizationSettings
from helium_mlx.checkpoint.row_blocks import dequantized
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.loading import load_model
from helium_mlx.model.losses import mean_divergence
from helium_mlx.quantization.calibrated_rounding import RoundingOutcome, rounded_rows
from helium_mlx.quantization.calibration import Windows
from helium_mlx.quantization.gptq import HessianFactor
from helium_mlx.quantization.plain import quantized
from helium_mlx.quantization.rounding import Rounding, fitted

PACKING = QuantizationSettings(32, 3)
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
Parts = dict[str, dict[str, mx.array]]


def windows() -> Windows:
    ids = mx.random.randint(3, 60, (40, 32), key=mx.random.key(0)).tolist()
    made = [mx.array([[1, *row]]) for row in ids]  # pyright: ignore[reportGeneralTypeIssues]
    return Windows(made[:30], made[30:])


def rounded(
    source: Path, rounding: Rounding, settings: QuantizationSettings = PACKING
) -> tuple[Parts, RoundingOutcome]:
    """The parts of each module by path, put together from the rows."""
    outcome, rows = RoundingOutcome(), defaultdict(list)
    made = rounded_rows(
        open_checkpoint(source),
        lambda path: settings,
        mx.bfloat16,
        rounding=rounding,
        windows=windows(),
        outcome=outcome,
    )
    for name, first_row, part in made:
        assert first_row == sum(piece.shape[0] for piece in rows[name])
        rows[name].append(part)
    parts: Parts = defaultdict(dict)
    for name, pieces in rows.items():
        path, _, suffix = name.rpartition(".")
        parts[path][suffix] = mx.concatenate(pieces)
    return parts, outcome


def model_of(source: Path, parts: Parts, settings: QuantizationSettings = PACKING) -> HeliumForCausalLM:
    """The source with what the rounded matrices are read as."""
    model = load_model(source, dtype="float32")
    weights = {f"{path}.weight": dequantized(part, settings) for path, part in parts.items()}
    model.load_weights(list(layout.merge_projections(weights, model.config, lambda path: None).items()), strict=False)
    return model


def divergence(source: Path, candidate: HeliumForCausalLM) -> float:
    reference = load_model(source, dtype="float32")
    return mean_divergence(lambda x: reference(x).logits, lambda x: candidate(x).logits, windows().held_out)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("rounding"), **SIZES)


@pytest.mark.parametrize("rounding", ["fitted", "gptq"])
@pytest.mark.parametrize(
    "case",
    [{}, {"attention_bias": True, "mlp_bias": True}, {**LLAMA, "num_key_value_heads": 1}, {"hidden_act": "gelu"}],
)
def test_reported_divergences_are_those_of_models_in_memory(
    tmp_path: Path, case: dict[str, object], rounding: Rounding
) -> None:
    source = write_checkpoint(tmp_path, **{**SIZES, **case})
    parts, outcome = rounded(source, rounding)
    paths = dict(layout.weight_shapes(open_checkpoint(source).config))
    assert parts.keys() == paths.keys()
    assert divergence(source, model_of(source, parts)) == pytest.approx(outcome.kl, rel=1e-3)
    tensors = {path: mx.load(str(source / "model.safetensors"))[f"{path}.weight"] for path in paths}  # pyright: ignore
    plain = {path: quantized(tensor.astype(mx.float32), PACKING, mx.bfloat16) for path, tensor in tensors.items()}
    assert divergence(source, model_of(source, plain)) == pytest.approx(outcome.plain_kl, rel=1e-3)


def test_gptq_is_nearer_than_fitted_and_fitted_than_plain(source: Path) -> None:
    outcomes = {rounding: rounded(source, rounding)[1] for rounding in ("fitted", "gptq")}
    assert outcomes["gptq"].kl < 0.7 * outcomes["fitted"].kl
    assert outcomes["fitted"].kl < outcomes["fitted"].plain_kl


def test_the_embedding_is_fitted(source: Path) -> None:
    parts, _ = rounded(source, "gptq")
    tensors = mx.load(str(source / "model.safetensors"))
    weight = tensors["model.embed_tokens.weight"].astype(mx.float32)  # pyright: ignore
    expected = fitted(weight, PACKING, mx.bfloat16)
    assert all(mx.array_equal(parts["model.embed_tokens"][suffix], part) for suffix, part in expected.items())


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path, **SIZES, tie_word_embeddings=True)
    parts, outcome = rounded(source, "gptq")
    assert "lm_head" not in parts
    assert divergence(source, model_of(source, parts)) == pytest.approx(outcome.kl, rel=1e-3)


def test_the_same_comes_out_twice(source: Path) -> None:
    first, second = (rounded(source, "gptq")[0] for _ in range(2))
    for path, parts in first.items():
        assert all(mx.array_equal(part, second[path][suffix]) for suffix, part in parts.items()), path


def test_a_module_that_comes_out_worse_stays_plain(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(
        weight: mx.array, factor: HessianFactor, settings: QuantizationSettings, dtype: mx.Dtype
    ) -> dict[str, mx.array]:
        return fitted(-weight, settings, dtype)

    monkeypatch.setattr("helium_mlx.quantization.gptq.rounded", spoilt)
    parts, outcome = rounded(source, "gptq")
    tensors = mx.load(str(source / "model.safetensors"))
    for path, part in parts.items():
        if path == "model.embed_tokens":
            continue
        assert path in outcome.kept_plain
        plain = quantized(tensors[f"{path}.weight"].astype(mx.float32), PACKING, mx.bfloat16)  # pyright: ignore
        assert all(mx.array_equal(part[suffix], expected) for suffix, expected in plain.items()), path
