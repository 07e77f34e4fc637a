import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from tiny_checkpoints import config_values

import helium_mlx
from helium_mlx import HeliumConfig
from helium_mlx.checkpoint.checkpoint import open_checkpoint
from helium_mlx.conversion import conversion, verification
from helium_mlx.conversion.verification import LOGITS_ERROR, PROMPTS
from helium_mlx.diagnostics import selfcheck_cases
from helium_mlx.errors import CheckpointError
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

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


def last_rows(change: Callable[[mx.array], mx.array]) -> Callable[[mx.array], mx.array]:
    """Change what lies behind the first eighth of the rows."""
    return lambda x: mx.concatenate([x[: x.shape[0] // 8], change(x[x.shape[0] // 8 :])])


def turned(x: mx.array) -> mx.array:
    return x[::-1]


DAMAGES: dict[str, tuple[Callable[[str, mx.array], mx.array], dict[str, object], str]] = {
    "a value is NaN": (only(K_PROJ, lambda x: mx.where(mx.arange(x.size).reshape(x.shape) == 5, mx.nan, x)), {},
                       f"{K_PROJ} has values that are not finite"),
    "a scale is infinite": (only(SCALES, lambda x: mx.where(mx.arange(x.size).reshape(x.shape) == 5, mx.inf, x)),
                            {"quantize": True}, f"{K_PROJ} has values that are not finite"),
    "all zeros": (only(K_PROJ, mx.zeros_like), {}, f"{K_PROJ} is all zeros, as the source is not"),
    "a norm of zeros": (only("model.norm.weight", mx.zeros_like), {}, "model.norm.weight is all zeros"),
    "codes and biases of zeros": (
        lambda name, x: mx.zeros_like(x) if "2.self_attn.k_proj" in name and "scales" not in name else x,
        {"quantize": True}, f"{K_PROJ} is all zeros"),
    "rows turned round": (only(K_PROJ, turned), {}, f"{K_PROJ} differs from the source, rounded to bfloat16, in"),
    "one value changed": (only(K_PROJ, lambda x: mx.where(mx.arange(x.size).reshape(x.shape) == 9000, x * 1.01, x)), {},
                          f"{K_PROJ} differs from the source, rounded to bfloat16, in 1 values"),
    "later rows turned round": (only(K_PROJ, last_rows(turned)), {"quantize": True}, f"{K_PROJ} is off by "),
    "later rows zeroed": (only("model.layers.3.mlp.down_proj.weight", last_rows(mx.zeros_like)),
                          {"quantize": True}, "model.layers.3.mlp.down_proj.weight is off by "),
    "later rows of the embedding": (only("model.embed_tokens.weight", last_rows(turned)),
                                    {"quantize": True, "q_bits": 2}, "model.embed_tokens.weight is off by "),
    "codes turned round": (only(K_PROJ, turned), {"quantize": True, "q_bits": 2}, f"{K_PROJ} is off by "),
    "scales of others": (only(SCALES, lambda x: x[:, ::-1] * 1.5), {"quantize": True}, f"{K_PROJ} is off by "),
    "mxfp4 codes": (only(K_PROJ, turned), {"quantize": True, "q_mode": "mxfp4"}, f"{K_PROJ} is off by "),
    "mxfp8 codes": (only(K_PROJ, last_rows(turned)), {"quantize": True, "q_mode": "mxfp8"}, f"{K_PROJ} is off by "),
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


CONFIG_DAMAGES: dict[str, object] = {
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-3,
    "max_position_embeddings": 16,
    "eos_token_id": 5,
    "bos_token_id": 7,
    "model_type": "llama",
    "hidden_act": "gelu",
    "architectures": ["FooBar"],
    "dtype": "float16",
    "quantization_config": None,
    "private": 1,
}


@pytest.mark.parametrize("key", CONFIG_DAMAGES)
def test_a_config_that_was_not_meant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    original = conversion.file_hashes

    def damaged(paths: list[Path], within: Path | None = None) -> dict[str, str]:
        for path in paths:
            if path.name == "config.json":
                values = json.loads(path.read_text()) | {key: CONFIG_DAMAGES[key]}
                if key == "rope_theta":
                    values["rope_parameters"]["rope_theta"] = 10_000.0
                path.write_text(json.dumps(values))
        return original(paths, within=within)

    monkeypatch.setattr(conversion, "file_hashes", damaged)
    with pytest.raises(CheckpointError, match="verification failed"):
        helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True)
    assert os.listdir(tmp_path) == []


def test_a_generation_config_that_was_not_meant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = conversion._write_configs

    def damaged(plan: object, directory: Path, destination: Path) -> None:
        original(plan, directory, destination)  # pyright: ignore[reportArgumentType]
        (directory / "generation_config.json").write_text('{"eos_token_id": 9}')

    monkeypatch.setattr(conversion, "_write_configs", damaged)
    with pytest.raises(CheckpointError, match=r"verification failed.*generation_config\.json has SHA-256"):
        helium_mlx.convert("demo", str(tmp_path / "x"))


def test_a_file_that_does_not_belong_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = conversion._write_configs

    def damaged(plan: object, directory: Path, destination: Path) -> None:
        original(plan, directory, destination)  # pyright: ignore[reportArgumentType]
        (directory / "model-00001-of-00002.safetensors").write_bytes(b"")

    monkeypatch.setattr(conversion, "_write_configs", damaged)
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors should not be there"):
        helium_mlx.convert("demo", str(tmp_path / "x"))


def test_logits_are_compared_where_every_weight_would_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = verification._outputs
    calls: list[int] = []

    def outputs(model: object, *arguments: object) -> mx.array:
        calls.append(1)
        found = original(model, *arguments)  # pyright: ignore[reportArgumentType]
        return found[..., ::-1] if len(calls) == 1 else found

    monkeypatch.setattr(verification, "_outputs", outputs)
    with pytest.raises(CheckpointError, match=r"verification failed.*: logits are off by .* from what the source's"):
        helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True)
    assert len(calls) == 3


@pytest.mark.parametrize("options", [{"q_bits": 4}, {"q_mode": "mxfp8"}, {"q_bits": 2}])
def test_a_model_that_is_more_sensitive_than_most_is_kept_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    monkeypatch.setattr(verification, "LOGITS_ERROR", dict.fromkeys(verification.LOGITS_ERROR, 1e-9))
    report = helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True, **options)  # pyright: ignore
    assert any("moves the logits" in warning for warning in report.warnings)


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("options", [{"q_bits": 8}, {"q_mode": "mxfp8"}, {"recipe": "mixed_2_6"}])
def test_heads_of_few_labels_raise_no_false_alarm(tmp_path: Path, labels: int, options: dict[str, object]) -> None:
    vocab_size = open_checkpoint(DEMO_DIRECTORY).config.vocab_size
    values = config_values(num_labels=labels, vocab_size=vocab_size)
    selfcheck_cases.write_checkpoint(tmp_path / "source", values, "ForSequenceClassification")
    HeliumTokenizer.from_pretrained("demo").save_pretrained(tmp_path / "source")
    group = {} if "q_mode" in options else {"q_group_size": 32}
    report = helium_mlx.convert(str(tmp_path / "source"), str(tmp_path / "x"), quantize=True, **group, **options)  # pyright: ignore
    assert report.verification is not None


def test_values_that_float16_cannot_hold_well_are_named_so(tmp_path: Path) -> None:
    source = small_weights(tmp_path / "source")
    with pytest.raises(CheckpointError, match=r"o_proj\.weight loses 0\.\d+ of its size in float16.*another dtype"):
        helium_mlx.convert(str(source), str(tmp_path / "x"), dtype="float16")


def test_values_that_a_mode_cannot_hold_are_named_so(tmp_path: Path) -> None:
    source = small_weights(tmp_path / "source")
    with pytest.raises(CheckpointError, match=r"o_proj\.weight is all zeros, as the source is not: take"):
        helium_mlx.convert(str(source), str(tmp_path / "x"), quantize=True, q_mode="nvfp4")


def small_weights(source: Path) -> Path:
    tensors = mx.load(str(DEMO_DIRECTORY / "model.safetensors"))
    assert isinstance(tensors, dict)
    source = shutil.copytree(DEMO_DIRECTORY, source)
    name = "model.layers.0.self_attn.o_proj.weight"
    selfcheck_cases.write_tensors(source / "model.safetensors", tensors | {name: 1e-5 * tensors[name]}, "float32")
    return source


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
    original = HeliumConfig.to_dict
    monkeypatch.setattr(HeliumConfig, "to_dict", lambda self: original(self) | {"eos_token_id": None})
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
    assert 0.02 < figures["logits"]["relative_error"] < figures["logits"]["usual"] == LOGITS_ERROR["4"]
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
