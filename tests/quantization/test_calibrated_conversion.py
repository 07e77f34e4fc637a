"""Conversions with calibrated rounding and chosen bits, end to end, with a short text."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest
from measures import relative_error
from tiny_checkpoints import write_checkpoint

import helium_mlx
from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.checkpoint import open_checkpoint
from helium_mlx.conversion.options import ConversionOptions
from helium_mlx.convert import main
from helium_mlx.errors import CheckpointError, HeliumError, QuantizationError
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.model.loading import load_model
from helium_mlx.quantization.calibrated_rounding import RoundingOutcome

PROMPT = mx.array([[1, 400, 500, 600, 700]])


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head in four blocks: what takes time here is their number."""
    monkeypatch.setattr("helium_mlx.quantization.calibrated_rounding.HEAD_BLOCKS", 4)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    stories = (Path(helium_mlx.__file__).parent / "quantization/calibration_texts/en.txt").read_text(encoding="utf-8")
    path.write_text("\n\n\n".join(stories.split("\n\n\n")[1:6]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def source_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a small random model with the demo's tokenizer."""

    def write(**overrides: object) -> Path:
        vocab_size = json.loads((DEMO_DIRECTORY / "config.json").read_text())["vocab_size"]
        sizes = {"vocab_size": vocab_size, "hidden_size": 64, "intermediate_size": 96}
        directory = write_checkpoint(tmp_path_factory.mktemp("source") / "model", **{**sizes, **overrides})
        for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(DEMO_DIRECTORY / name, directory)
        return directory

    return write


@pytest.fixture(scope="module")
def source(source_with: Callable[..., Path]) -> Path:
    return source_with()


def test_the_command_rounds_the_demo_and_says_what_it_brought(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "x"
    arguments = ["--hf-path", "demo", "--mlx-path", str(output), "-q", "--q-bits", "2", "--rounding", "gptq"]
    assert main([*arguments, "--calibration-text", str(text)]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "with plain rounding" in said.err
    record = json.loads((output / "conversion.json").read_text())["calibration"]
    assert record["rounding"] == "gptq"
    assert 0 < record["kl"] < 0.6 * record["plain_kl"]
    assert record["fitted_tokens"] > record["held_out_tokens"] > 0
    assert record["seconds_per_billion_weights"] > 0


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("helium", {"rounding": "gptq"}),
        ("llama", {"rounding": "fitted"}),
        ("llama", {"rounding": "gptq", "target_bpw": 5.5}),
    ],
)
def test_biases_are_kept(
    tmp_path: Path, source_with: Callable[..., Path], text: Path, model_type: str, options: dict[str, object]
) -> None:
    source = source_with(model_type=model_type, attention_bias=True, mlp_bias=True)
    made = tmp_path / "x"
    options = {"quantize": "target_bpw" not in options, **options}
    if options["quantize"]:
        options["q_group_size"] = 32
    helium_mlx.convert(str(source), str(made), calibration_text=str(text), **options)  # pyright: ignore[reportArgumentType]
    before, after = (cast("dict[str, mx.array]", mx.load(str(each / "model.safetensors"))) for each in (source, made))
    biases = [name for name in before if name.endswith(".bias")]
    assert len(biases) > 10
    assert all(mx.array_equal(before[name], after[name]).item() for name in biases)


@pytest.mark.parametrize(
    ("rounding", "name", "value"),
    [
        ("gptq", "model.layers.1.mlp.down_proj.weight", "nan"),
        ("gptq", "lm_head.weight", "inf"),
        ("fitted", "model.layers.0.self_attn.q_proj.weight", "inf"),
        ("fitted", "model.embed_tokens.weight", "nan"),
    ],
)
def test_a_weight_that_is_not_finite_is_named(
    tmp_path: Path, source_with: Callable[..., Path], text: Path, rounding: str, name: str, value: str
) -> None:
    source = source_with()
    weights = cast("dict[str, mx.array]", mx.load(str(source / "model.safetensors")))
    weights[name][3, 5] = float(value)
    mx.save_safetensors(str(source / "model.safetensors"), weights)
    with pytest.raises(CheckpointError, match=f"{name} has values that are not finite"):
        helium_mlx.convert(
            str(source), str(tmp_path / "x"), quantize=True, q_group_size=32, rounding=rounding,
            calibration_text=str(text),
        )  # fmt: skip
    assert not (tmp_path / "x").exists()


def test_mlx_lm_opens_it_with_the_same_logits(tmp_path: Path, source: Path, text: Path) -> None:
    from mlx_lm.utils import load_model as load

    directory = tmp_path / "x"
    helium_mlx.convert(str(source), str(directory), target_bpw=4.0, rounding="gptq", calibration_text=str(text))
    model, _ = load(directory)
    model.set_dtype(mx.float32)
    assert relative_error(model(PROMPT), load_model(directory, dtype="float32")(PROMPT).logits) < 1e-5


@pytest.mark.parametrize("rounding", ["nearest", "fitted", "gptq"])
def test_a_target_is_kept(tmp_path: Path, source: Path, text: Path, rounding: str) -> None:
    report = helium_mlx.convert(
        str(source), str(tmp_path / "x"), target_bpw=3.5, rounding=rounding, calibration_text=str(text)
    )
    assert 3.3 < report.bits_per_weight <= 3.5
    assert report.calibration is not None
    source_config = open_checkpoint(source).config
    assert report.calibration.sensitivities.keys() == {path for path, _ in layout.weight_shapes(source_config)}
    assert report.verification is not None


def test_what_is_further_off_than_plain_rounding_is_not_kept(
    tmp_path: Path, source: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RoundingOutcome, "is_better", property(lambda outcome: False))
    options = {"quantize": True, "q_bits": 4, "q_group_size": 32}
    made = helium_mlx.convert(str(source), str(tmp_path / "x"), rounding="gptq", calibration_text=str(text), **options)
    helium_mlx.convert(str(source), str(tmp_path / "y"), **options)
    ours, plain = (tmp_path / name / "model.safetensors" for name in "xy")
    assert ours.read_bytes() == plain.read_bytes()
    assert made.calibration is not None
    assert made.calibration.rounding == "nearest"
    assert any("plain rounding was kept" in warning for warning in made.warnings)


def test_nearest_is_what_it_was(tmp_path: Path, source: Path) -> None:
    said = helium_mlx.convert(str(source), str(tmp_path / "x"), quantize=True, q_group_size=32, rounding="nearest")
    helium_mlx.convert(str(source), str(tmp_path / "y"), quantize=True, q_group_size=32)
    assert said.calibration is None
    assert "rounding" not in said.options
    assert (tmp_path / "x/model.safetensors").read_bytes() == (tmp_path / "y/model.safetensors").read_bytes()


@pytest.mark.parametrize("rounding", ["fitted", "gptq"])
def test_verification_finds_matrices_in_each_other_s_place(
    tmp_path: Path, source: Path, text: Path, rounding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from helium_mlx.quantization import calibrated_rounding

    named = calibrated_rounding._named
    swapped = {"mlp.gate_proj": "mlp.up_proj", "mlp.up_proj": "mlp.gate_proj"}

    def misnamed(path: str, first_row: int, parts: dict[str, mx.array]) -> object:
        for old, new in swapped.items():
            if path.endswith(old):
                return named(path.replace(old, new), first_row, parts)
        return named(path, first_row, parts)

    monkeypatch.setattr(calibrated_rounding, "_named", misnamed)
    with pytest.raises(HeliumError, match=r"verification failed.*weight has a cosine of"):
        helium_mlx.convert(
            str(source),
            str(tmp_path / "x"),
            quantize=True,
            q_group_size=32,
            rounding=rounding,
            calibration_text=str(text),
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantize": True, "q_mode": "mxfp4", "rounding": "gptq"}, "rounding gptq is for mode affine"),
        ({"rounding": "gptq"}, "not to be quantized"),
        ({"quantize": True, "rounding": "stochastic"}, "known are nearest, fitted, gptq"),
        ({"quantize": True, "calibration_text": "x"}, "no use for it"),
        ({"target_bpw": 4.0, "q_bits": 4}, "q_bits and target_bpw are both given"),
        ({"target_bpw": 4.0, "recipe": "mixed_4_6"}, "recipe and target_bpw are both given"),
        ({"target_bpw": float("nan")}, "target_bpw is nan"),
        ({"target_bpw": -1.0}, "target_bpw is -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(QuantizationError, match=said):
        ConversionOptions(**options)  # pyright: ignore[reportArgumentType]


def test_a_model_without_logits_is_refused(source: Path) -> None:
    bare = replace(open_checkpoint(source), architecture="Model")
    with pytest.raises(QuantizationError, match="calibration needs the logits of a causal LM"):
        ConversionOptions(quantize=True, rounding="gptq").settings_for(bare)


@pytest.mark.parametrize("quiet", [False, True])
def test_the_command_says_once_how_long_each_part_takes(
    source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: bool
) -> None:
    flags = ["--hf-path", str(source), "--mlx-path", str(tmp_path / "out"), "--calibration-text", str(text)]
    assert main([*flags, "--target-bpw", "4", "--rounding", "fitted", *(["--quiet"] if quiet else [])]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if " takes " in line]
    assert [line.partition(" takes ")[0] for line in said] == ([] if quiet else ["Choosing bits", "Rounding"])
    assert all(line.endswith(" weights") for line in said)
