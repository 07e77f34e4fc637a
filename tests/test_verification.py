import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from tiny_checkpoints import config_values

import helium_mlx
from helium_mlx import conversion, selfcheck_cases
from helium_mlx.checkpoint import DEMO_DIRECTORY, open_checkpoint
from helium_mlx.errors import CheckpointError
from helium_mlx.tokenizer import HeliumTokenizer
from helium_mlx.verification import LOGITS_ERROR, PROMPTS

Rows = Iterator[tuple[str, int, mx.array]]

K_PROJ = "model.layers.2.self_attn.k_proj.weight"
SCALES = "model.layers.2.self_attn.k_proj.scales"


def damage(monkeypatch: pytest.MonkeyPatch, change: Callable[[str, mx.array], mx.array]) -> None:
    """Let every tensor that is written go through `change`."""
    original = conversion.converted_rows

    def changed(*arguments: object) -> Rows:
        for name, first_row, rows in original(*arguments):  # pyright: ignore[reportArgumentType]
            yield name, first_row, change(name, rows).astype(rows.dtype)

    monkeypatch.setattr(conversion, "converted_rows", changed)


def only(name: str, change: Callable[[mx.array], mx.array]) -> Callable[[str, mx.array], mx.array]:
    return lambda found, rows: change(rows) if found == name else rows


DAMAGES: dict[str, tuple[Callable[[str, mx.array], mx.array], dict[str, object], str]] = {
    "a value is NaN": (only(K_PROJ, lambda x: mx.where(mx.arange(x.size).reshape(x.shape) == 5, mx.nan, x)), {},
                       f"{K_PROJ} has values that are not finite"),
    "a scale is infinite": (only(SCALES, lambda x: mx.where(mx.arange(x.size).reshape(x.shape) == 5, mx.inf, x)),
                            {"quantize": True}, f"{K_PROJ} has values that are not finite"),
    "all zeros": (only(K_PROJ, mx.zeros_like), {}, f"{K_PROJ} is all zeros"),
    "a norm of zeros": (only("model.norm.weight", mx.zeros_like), {}, "model.norm.weight is all zeros"),
    "codes and biases of zeros": (
        lambda name, x: mx.zeros_like(x) if "2.self_attn.k_proj" in name and "scales" not in name else x,
        {"quantize": True}, f"{K_PROJ} is all zeros"),
    "rows turned round": (only(K_PROJ, lambda x: x[::-1]), {}, f"{K_PROJ} is off by 1"),
    "a weight twice as large": (only(K_PROJ, lambda x: 2 * x), {}, f"{K_PROJ} is off by 1 of"),
    "codes turned round": (only(K_PROJ, lambda x: x[::-1]), {"quantize": True, "q_bits": 2}, f"{K_PROJ} is off by "),
    "scales of others": (only(SCALES, lambda x: x[:, ::-1] * 1.5), {"quantize": True}, f"{K_PROJ} is off by "),
    "mxfp4 codes": (only(K_PROJ, lambda x: x[::-1]), {"quantize": True, "q_mode": "mxfp4"}, f"{K_PROJ} is off by "),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_result_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    change, options, message = DAMAGES[name]
    damage(monkeypatch, change)
    with pytest.raises(CheckpointError) as caught:
        helium_mlx.convert("demo", str(tmp_path / "x"), **options)  # pyright: ignore[reportArgumentType]
    assert f"{tmp_path / 'x'}: verification failed, so nothing is kept: {message}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_without_verification_it_would_have_been_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(monkeypatch, DAMAGES["rows turned round"][0])
    report = helium_mlx.convert("demo", str(tmp_path / "x"), verify=False)
    assert report.verification is None
    assert (tmp_path / "x").is_dir()


def test_the_old_result_stays_where_a_new_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    damage(monkeypatch, DAMAGES["all zeros"][0])
    with pytest.raises(CheckpointError, match="verification failed"):
        helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == before


def test_logits_are_compared_where_every_weight_would_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = conversion._converted_config

    def other_rope(*arguments: object) -> object:
        config = original(*arguments)  # pyright: ignore[reportArgumentType]
        config.rope_parameters = {"rope_type": "default", "rope_theta": 3.0}
        return config

    monkeypatch.setattr(conversion, "_converted_config", other_rope)
    with pytest.raises(CheckpointError, match=r"verification failed.*: logits are off by 0\.\d+ of their size"):
        helium_mlx.convert("demo", str(tmp_path / "x"))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_file_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    original = HeliumTokenizer.save_pretrained

    def save(self: HeliumTokenizer, path: Path) -> tuple[str, ...]:
        saved = original(self, path)
        (path / file).write_text((path / file).read_text() + "\n")
        return saved

    monkeypatch.setattr(HeliumTokenizer, "save_pretrained", save)
    with pytest.raises(CheckpointError, match=rf"verification failed.*{file} has SHA-256"):
        helium_mlx.convert("demo", str(tmp_path / "x"))


def test_a_missing_eos_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = conversion.HeliumConfig.to_dict
    monkeypatch.setattr(conversion.HeliumConfig, "to_dict", lambda self: original(self) | {"eos_token_id": None})
    with pytest.raises(CheckpointError, match=r"verification failed.*eos_token_id is missing"):
        helium_mlx.convert("demo", str(tmp_path / "x"))


def test_a_tensor_of_another_dtype_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = conversion.Expected

    def expecting(plans: dict[str, tuple[mx.Dtype, object]], *rest: object) -> object:
        return original(plans | {"model.norm.weight": (mx.float32, (128,))}, *rest)  # pyright: ignore

    monkeypatch.setattr(conversion, "Expected", expecting)
    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight is \('BF16', \(128,\)\) on disk, expected"):
        helium_mlx.convert("demo", str(tmp_path / "x"))


def test_the_figures_stand_in_the_record(tmp_path: Path) -> None:
    report = helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True)
    record = json.loads((tmp_path / "x/conversion.json").read_text())
    assert record["verification"] == report.verification
    figures = record["verification"]
    assert figures["eos_token_id"] == [2]
    assert 0.05 < figures["weights"]["relative_error"] < 0.15
    assert 0.02 < figures["logits"]["relative_error"] < figures["logits"]["bound"] == LOGITS_ERROR[4]
    assert len(figures["greedy"]) == len(PROMPTS)
    assert all(text.strip() for text in figures["greedy"])


def test_nothing_is_lost_at_full_precision(tmp_path: Path) -> None:
    figures = helium_mlx.convert("demo", str(tmp_path / "x")).verification
    assert figures is not None
    assert figures["weights"]["relative_error"] == 0  # pyright: ignore
    assert figures["logits"]["relative_error"] == 0  # pyright: ignore
    assert figures["logits"]["same_best"] == 1  # pyright: ignore


@pytest.mark.parametrize("architecture", ["Model", "ForSequenceClassification", "ForTokenClassification"])
@pytest.mark.parametrize("quantize", [False, True])
def test_every_architecture_is_converted_and_verified(
    tmp_path: Path, architecture: selfcheck_cases.Architecture, quantize: bool
) -> None:
    vocab_size = open_checkpoint(DEMO_DIRECTORY).config.vocab_size
    values = config_values(num_labels=3, vocab_size=vocab_size)
    selfcheck_cases.write_checkpoint(tmp_path / "source", values, architecture)
    HeliumTokenizer.from_pretrained("demo").save_pretrained(tmp_path / "source")
    options: dict[str, object] = {"quantize": True, "q_bits": 8, "q_group_size": 32} if quantize else {}
    report = helium_mlx.convert(str(tmp_path / "source"), str(tmp_path / "x"), **options)  # pyright: ignore
    assert report.verification is not None
    assert "greedy" not in report.verification
    written = open_checkpoint(tmp_path / "x", architecture=None)
    assert written.architecture == architecture
    assert written.is_quantized == quantize
    assert any("causal LMs only" in warning for warning in report.warnings)
