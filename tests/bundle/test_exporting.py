import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest
from bundle_samples import write_text_checkpoint
from processes import run_command

import helium_mlx
from helium_mlx.bundle import exporting
from helium_mlx.bundle.bundle import open_bundle
from helium_mlx.bundle.exporting import export
from helium_mlx.bundle.runner import BundleRunner
from helium_mlx.bundle.vectors import make_vectors
from helium_mlx.diagnostics import selfcheck_cases
from helium_mlx.diagnostics.selfcheck_cases import config_values
from helium_mlx.errors import BundleError, CheckpointError, GenerationError, TokenizerError, UsageError
from helium_mlx.generation.sampling import SamplingOptions


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_checkpoint(tmp_path_factory.mktemp("source"), num_hidden_layers=1)


def test_the_demo_makes_the_round_trip(tmp_path: Path) -> None:
    report = export("demo", tmp_path / "bundle", context=128, dtype="float32")
    assert report.vectors == 8
    assert report.error is not None
    assert report.error < 1e-5
    assert report.total_bytes == sum(path.stat().st_size for path in (tmp_path / "bundle").rglob("*") if path.is_file())
    runner = BundleRunner(open_bundle(tmp_path / "bundle"))
    model, tokenizer = helium_mlx.load("demo", dtype="float32")
    for prompt in ("Once upon a time", "Il était une fois"):
        text = helium_mlx.generate(model, tokenizer, prompt, max_tokens=40)
        assert "".join(runner.stream(prompt, max_tokens=40)) == text


def test_a_model_whose_logits_are_not_numbers_is_refused(source: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    tensors = cast("dict[str, mx.array]", mx.load(str(source / "model.safetensors")))
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * mx.nan
    mx.save_safetensors(str(broken / "model.safetensors"), tensors, {"format": "pt"})
    with pytest.raises(GenerationError, match="the model's logits are NaN, infinite or all the same"):
        export(broken, tmp_path / "bundle", verify=False)
    assert not (tmp_path / "bundle").exists()


def test_ids_that_the_model_lacks_are_refused_and_do_not_crash(source: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    values = json.loads((broken / "tokenizer.json").read_text(encoding="utf-8"))
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1, 900_000], "tokens": ["<s>", "<s>"]}},
    }
    (broken / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    # In a process of its own, which such an id once crashed.
    ended = run_command("export", "--model", str(broken), "--output", str(tmp_path / "bundle"))
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert "900000" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("tokenizer", ["json", "sentencepiece"])
def test_either_tokenizer_file_will_do(tmp_path: Path, tokenizer: str) -> None:
    source = write_text_checkpoint(tmp_path / "source", tokenizer=tokenizer, num_hidden_layers=1)  # pyright: ignore
    export(source, tmp_path / "bundle", context=64)
    said = json.loads((tmp_path / "bundle/manifest.json").read_text())["tokenizer"]
    assert said["follows"] == ("tokenizer.json" if tokenizer == "json" else "tokenizer.model")
    assert said["json"] == ("tokenizer.json" if tokenizer == "json" else None)


def test_the_manifest_has_ids_and_defaults(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "bundle", context=64, verify=False)
    said = json.loads((tmp_path / "bundle/manifest.json").read_text())
    assert (said["bos_token_id"], said["eos_token_ids"]) == (1, [2])
    assert said["reserved_ids"] == list(range(6, 106))
    assert said["sampling"]["max_tokens"] == 256
    assert said["model"]["bits_per_weight"] == 32
    defaults = asdict(SamplingOptions())
    assert all(defaults[name] == value for name, value in said["sampling"].items() if name != "max_tokens")


def test_the_context_is_the_models_unless_told(source: Path, tmp_path: Path) -> None:
    assert export(source, tmp_path / "bundle", verify=False).context == 256


@pytest.mark.parametrize("context", [0, 1, 257])
def test_a_context_that_the_model_has_not_is_refused(source: Path, tmp_path: Path, context: int) -> None:
    with pytest.raises(UsageError, match=f"context is {context}; it must be from 2 to the model's 256"):
        export(source, tmp_path / "bundle", context=context)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("architecture", ["ForSequenceClassification", "ForTokenClassification", "Model"])
def test_what_generates_no_text_is_refused(tmp_path: Path, architecture: selfcheck_cases.Architecture) -> None:
    values = config_values(num_hidden_layers=1)
    directory = selfcheck_cases.write_checkpoint(tmp_path / "source", values, architecture)
    with pytest.raises(CheckpointError, match=f"the architecture is {architecture}; a bundle generates text"):
        export(directory, tmp_path / "bundle")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    source = write_text_checkpoint(tmp_path / "source")
    (source / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="neither"):
        export(source, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_that_is_there_is_left_or_replaced(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "bundle", context=32, verify=False)
    with pytest.raises(BundleError, match="overwrite=True"):
        export(source, tmp_path / "bundle", context=64, verify=False)
    assert open_bundle(tmp_path / "bundle").manifest.context == 32
    export(source, tmp_path / "bundle", context=64, verify=False, overwrite=True)
    assert open_bundle(tmp_path / "bundle").manifest.context == 64


@pytest.mark.parametrize("name", ["notes.txt", "functions/notes.txt", "model.safetensors"])
def test_overwriting_leaves_what_is_no_bundle(source: Path, tmp_path: Path, name: str) -> None:
    export(source, tmp_path / "bundle", context=32, verify=False)
    (tmp_path / "bundle" / name).write_text("mine")
    with pytest.raises(BundleError, match=name):
        export(source, tmp_path / "bundle", overwrite=True)
    assert (tmp_path / "bundle" / name).read_text() == "mine"


def test_the_source_is_never_written_over(source: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "source")
    with pytest.raises(BundleError, match="no part of a bundle"):
        export(copy, copy, overwrite=True)
    assert sorted(path.name for path in copy.iterdir()) == sorted(path.name for path in source.iterdir())


def test_a_place_that_cannot_be_written_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file"):
        export(source, tmp_path / "file/bundle")


def test_a_bundle_that_fails_its_vectors_is_not_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: object, **options: object) -> object:
        known = make_vectors(*arguments, **options)  # pyright: ignore[reportArgumentType]
        known.vectors[0].ids.append(3)
        return known

    monkeypatch.setattr(exporting, "make_vectors", wrong)
    with pytest.raises(BundleError, match=r"bundle: verification failed, so nothing is kept: .* other ids"):
        export(source, tmp_path / "bundle", context=64)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_counted_to_the_end(source: Path, tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {"model": [], "bundle": []}
    export(
        source,
        tmp_path / "bundle",
        context=64,
        on_progress=lambda *count: seen["model"].append(count),
        on_verification=lambda *count: seen["bundle"].append(count),
    )
    assert seen["model"] == seen["bundle"]
    assert seen["model"][-1][0] == seen["model"][-1][1] == len(seen["model"])
