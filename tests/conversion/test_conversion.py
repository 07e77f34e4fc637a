import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from measures import relative_error
from processes import run_code
from safetensors import safe_open
from tiny_checkpoints import CASES, write_checkpoint

import helium_mlx
from helium_mlx.checkpoint import row_blocks as blocks
from helium_mlx.checkpoint import weight_files
from helium_mlx.checkpoint.checkpoint import open_checkpoint
from helium_mlx.errors import CheckpointError, ConfigError, QuantizationError, TokenizerError
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.files.safetensors_header import read_header
from helium_mlx.model.loading import load_model

PROMPT = mx.array([[1, 10, 20, 30, 40, 50]])
TOKENIZER_FILES = ["tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"]


def demo_source(directory: Path) -> Path:
    return shutil.copytree(DEMO_DIRECTORY, directory / "source")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def without_card(report: helium_mlx.ConversionReport) -> dict[str, str]:
    """The hashes of what does not name its source."""
    return {name: digest for name, digest in report.files.items() if name != "README.md"}


def lm_load(directory: Path) -> tuple[object, dict[str, object]]:
    from mlx_lm.utils import load_model as load

    model, config = load(directory)
    return model, config


def lm_logits(directory: Path, prompt: mx.array) -> mx.array:
    model, _ = lm_load(directory)
    model.set_dtype(mx.float32)  # pyright: ignore[reportAttributeAccessIssue]
    return model(prompt)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_full_precision_keeps_every_value(tmp_path: Path, dtype: str) -> None:
    report = helium_mlx.convert("demo", str(tmp_path / "x"), dtype=dtype)
    source, written = (mx.load(str(path / "model.safetensors")) for path in (DEMO_DIRECTORY, Path(report.mlx_path)))
    assert isinstance(source, dict)
    assert isinstance(written, dict)
    assert source.keys() == written.keys()
    for name, tensor in written.items():
        assert tensor.dtype == getattr(mx, dtype)
        assert mx.array_equal(tensor, source[name].astype(getattr(mx, dtype))), name


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_codes_are_what_mlx_quantize_gives(tmp_path: Path, bits: int, group_size: int) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True, q_bits=bits, q_group_size=group_size)
    source, written = mx.load(str(DEMO_DIRECTORY / "model.safetensors")), mx.load(str(tmp_path / "x/model.safetensors"))
    assert isinstance(source, dict)
    assert isinstance(written, dict)
    for path in ("model.embed_tokens", "model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj", "lm_head"):
        expected = mx.quantize(source[f"{path}.weight"], group_size, bits)
        for suffix, array in zip(("weight", "scales", "biases"), expected, strict=True):
            assert mx.array_equal(written[f"{path}.{suffix}"], array), (path, suffix)


@pytest.mark.parametrize("options", [{}, {"quantize": True}, {"quantize": True, "q_bits": 8, "q_group_size": 32}])
@pytest.mark.parametrize("dtype", ["float32", None])
def test_mlx_lm_opens_it_with_the_same_logits(tmp_path: Path, options: dict[str, object], dtype: str | None) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"), dtype=dtype, **options)  # pyright: ignore[reportArgumentType]
    ours = load_model(tmp_path / "x", dtype="float32")(PROMPT).logits
    assert relative_error(lm_logits(tmp_path / "x", PROMPT), ours) < 1e-5


LLAMA_ROPES: dict[str, dict[str, object]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 8},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


def tiny_source(directory: Path, **overrides: object) -> Path:
    """A random checkpoint with the demo's tokenizer."""
    source = write_checkpoint(directory / "source", **{**overrides, "vocab_size": json_vocab_size()})
    for name in TOKENIZER_FILES:
        shutil.copy(DEMO_DIRECTORY / name, source)
    return source


@pytest.mark.parametrize("rope_type", LLAMA_ROPES)
@pytest.mark.parametrize("quantize", [False, True])
def test_mlx_lm_opens_a_converted_llama_with_the_same_logits(tmp_path: Path, rope_type: str, quantize: bool) -> None:
    parameters = {"rope_type": rope_type, "rope_theta": 1000.0, **LLAMA_ROPES[rope_type]}
    source = tiny_source(tmp_path, **CASES["llama-gqa-bias"], rope_parameters=parameters)
    report = helium_mlx.convert(
        str(source), str(tmp_path / "x"), quantize=quantize, q_group_size=32 if quantize else None
    )
    prompt = mx.array([[1, *range(300, 340)]])
    ours = load_model(tmp_path / "x", dtype="float32")(prompt).logits
    assert relative_error(lm_logits(tmp_path / "x", prompt), ours) < 1e-5
    swift = ["mlx-swift-lm's Llama cannot open rope_type 'yarn'"] if rope_type == "yarn" else []
    assert report.warnings == swift


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"tie_word_embeddings": True}, "tied"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0}}, "linear"),
    ],
)
def test_what_mlx_lm_reads_otherwise_is_said_and_stands_in_the_card(
    tmp_path: Path, overrides: dict[str, object], said: str
) -> None:
    report = helium_mlx.convert(str(tiny_source(tmp_path, **overrides)), str(tmp_path / "x"))
    assert len(report.warnings) == 1
    assert said in report.warnings[0]
    assert report.warnings[0] in (tmp_path / "x/README.md").read_text()
    assert helium_mlx.convert("demo", str(tmp_path / "demo")).warnings == []


def json_vocab_size() -> int:
    return int(json.loads((DEMO_DIRECTORY / "config.json").read_text())["vocab_size"])


def test_quantized_text_is_close_to_the_source(tmp_path: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True, q_bits=8)
    source, converted = load_model(DEMO_DIRECTORY), load_model(tmp_path / "x")
    assert relative_error(converted(PROMPT).logits, source(PROMPT).logits) < 0.05


def test_the_config_is_what_every_loader_needs(tmp_path: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True)
    config = json.loads((tmp_path / "x/config.json").read_text())
    assert config["model_type"] == "helium"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100_000.0
    assert config["quantization"] == config["quantization_config"] == {"group_size": 64, "bits": 4, "mode": "affine"}
    assert isinstance(config["eos_token_id"], int)
    generation = json.loads((tmp_path / "x/generation_config.json").read_text())
    assert generation["eos_token_id"] == config["eos_token_id"]


def test_no_tensor_is_unused_and_none_is_missing(tmp_path: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True)
    names = set(read_header(tmp_path / "x/model.safetensors"))
    source = set(read_header(DEMO_DIRECTORY / "model.safetensors"))
    assert {name for name in names if name.endswith(".weight")} == source
    assert {name.replace(".scales", ".biases") for name in names if name.endswith(".scales")} == {
        name for name in names if name.endswith(".biases")
    }


def test_tokenizer_files_are_copied_byte_for_byte(tmp_path: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"))
    for name in TOKENIZER_FILES:
        assert (tmp_path / "x" / name).read_bytes() == (DEMO_DIRECTORY / name).read_bytes()


def test_the_record_has_source_options_versions_and_hashes(tmp_path: Path) -> None:
    report = helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True)
    record = json.loads((tmp_path / "x/conversion.json").read_text())
    assert record["source"] == "demo"
    assert record["quantization"] == {"group_size": 64, "bits": 4, "mode": "affine"}
    assert record["bits_per_weight"] == report.bits_per_weight == pytest.approx(4.5, abs=0.05)
    assert record["versions"].keys() == {"helium_mlx", "mlx", "python"}
    for name, digest in record["files"].items():
        assert hashlib.sha256((tmp_path / "x" / name).read_bytes()).hexdigest() == digest
    weights = (DEMO_DIRECTORY / "model.safetensors").read_bytes()
    assert record["source_files"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert set(record["source_files"]) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        *TOKENIZER_FILES,
    }
    assert record["options"] == {"quantize": True, "to": "mlx", "verify": True, "overwrite": False}
    assert record["parameters"] == 1_803_904
    assert 0 < record["peak_memory"] < record["peak_resident_memory"]
    assert record["seconds"] > 0
    assert set(record["files"]) | {"conversion.json"} == set(os.listdir(tmp_path / "x"))


def test_the_card_says_what_it_is(tmp_path: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "tiny-4bit"), quantize=True)
    card = (tmp_path / "tiny-4bit/README.md").read_text()
    assert card.startswith("---\nlibrary_name: mlx\n")
    assert "4 bits in groups of 64" in card
    assert "toy" in card


def test_the_card_of_a_recipe_names_it(tmp_path: Path) -> None:
    report = helium_mlx.convert("demo", str(tmp_path / "x"), recipe="mixed_4_6", verify=False)
    card = (tmp_path / "x/README.md").read_text()
    assert f"at {report.bits_per_weight:.2f} bits per weight by the recipe `mixed_4_6`." in card


def test_the_card_of_a_checkpoint_for_transformers_says_so(tmp_path: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"), to="hf", verify=False)
    card = (tmp_path / "x/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "to the form that transformers reads from `demo`" in card
    assert "mlx_lm" not in card


def test_the_licence_of_the_source_is_carried_on(tmp_path: Path) -> None:
    source = demo_source(tmp_path)
    (source / "README.md").write_text("---\nlicense: cc-by-4.0\nlanguage: fr\n---\n# A model\n")
    helium_mlx.convert(str(source), str(tmp_path / "x"))
    assert "license: cc-by-4.0" in (tmp_path / "x/README.md").read_text()


def test_converting_twice_gives_the_same_weights(tmp_path: Path) -> None:
    for name in ("a", "b"):
        helium_mlx.convert("demo", str(tmp_path / name), quantize=True)
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first["model.safetensors"] == second["model.safetensors"]
    assert first["config.json"] == second["config.json"]


def test_shards_in_and_out_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helium_mlx.convert("demo", str(tmp_path / "whole"), dtype="float32")
    monkeypatch.setattr(weight_files, "MAX_SHARD_BYTES", 2_000_000)
    helium_mlx.convert("demo", str(tmp_path / "shards"), dtype="float32")
    monkeypatch.undo()
    shards = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(path.stat().st_size < 2_010_000 for path in (tmp_path / "shards").glob("*.safetensors"))
    index = json.loads((tmp_path / "shards/model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    helium_mlx.convert(str(tmp_path / "shards"), str(tmp_path / "again"))
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert relative_error(lm_logits(tmp_path / "shards", PROMPT), load_model(tmp_path / "whole")(PROMPT).logits) < 1e-5


def test_progress_ends_at_all_bytes(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    report = helium_mlx.convert(
        "demo", str(tmp_path / "x"), on_progress=lambda done, total: steps.append((done, total))
    )
    assert steps[-1] == (report.total_bytes, report.total_bytes)
    assert steps == sorted(steps)


def test_an_existing_directory_is_refused(tmp_path: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"))
    before = contents(tmp_path / "x")
    with pytest.raises(CheckpointError, match="overwrite=True"):
        helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True)
    assert contents(tmp_path / "x") == before


def test_overwrite_replaces_the_whole_directory(tmp_path: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"))
    (tmp_path / "x/model-00001-of-00002.safetensors").write_text("old")
    helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True, overwrite=True)
    assert not (tmp_path / "x/model-00001-of-00002.safetensors").exists()
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("stranger", ["thesis.txt", "mycode.py", "folder/notes.json", ".env"])
@pytest.mark.parametrize("is_checkpoint", [False, True])
def test_overwrite_leaves_alone_what_holds_anything_else(tmp_path: Path, stranger: str, is_checkpoint: bool) -> None:
    home = tmp_path / "home"
    if is_checkpoint:
        helium_mlx.convert("demo", str(home))
    (home / stranger).parent.mkdir(parents=True, exist_ok=True)
    (home / "config.json").touch()
    (home / stranger).write_text("years of work")
    with pytest.raises(CheckpointError, match=rf"holds {stranger.partition('/')[0]}, .*leaves it alone"):
        helium_mlx.convert("demo", str(home), overwrite=True)
    assert (home / stranger).read_text() == "years of work"
    assert os.listdir(tmp_path) == ["home"]


def test_overwrite_leaves_alone_what_holds_the_source(tmp_path: Path) -> None:
    source = demo_source(tmp_path / "parent")
    before = contents(source)
    with pytest.raises(CheckpointError, match="holds source"):
        helium_mlx.convert(str(source), str(tmp_path / "parent"), overwrite=True)
    assert contents(source) == before


def test_a_file_in_the_way_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a file")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="not a directory; choose another name"):
            helium_mlx.convert("demo", str(tmp_path / "x"), overwrite=overwrite)


def test_a_directory_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        helium_mlx.convert("demo", str(tmp_path / "x"))
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o700


def test_a_tokenizer_of_kyutais_name_is_carried_on(tmp_path: Path) -> None:
    source = demo_source(tmp_path)
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").rename(source / "tokenizer_spm_48k_multi6_2.model")
    helium_mlx.convert(str(source), str(tmp_path / "x"))
    _, tokenizer = helium_mlx.load(tmp_path / "x")
    assert tokenizer.decode(tokenizer.encode("Bonjour")) == "Bonjour"


def test_values_that_a_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    source = demo_source(tmp_path)
    weights = mx.load(str(source / "model.safetensors"))
    assert isinstance(weights, dict)
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1e6
    mx.eval(weights)  # they are read from the file that is about to be replaced
    mx.save_safetensors(str(source / "model.safetensors"), weights)
    helium_mlx.convert(str(source), str(tmp_path / "fine"))
    with pytest.raises(
        CheckpointError, match=r"model\.norm\.weight has values that are not finite, in the source or in float16"
    ):
        helium_mlx.convert(str(source), str(tmp_path / "x"), dtype="float16")
    assert sorted(os.listdir(tmp_path)) == ["fine", "source"]


def test_the_source_cannot_be_overwritten_by_its_own_conversion(tmp_path: Path) -> None:
    source = demo_source(tmp_path)
    before = contents(source)
    with pytest.raises(CheckpointError, match="source itself"):
        helium_mlx.convert(str(source), str(tmp_path / "." / "source"), overwrite=True)
    assert contents(source) == before


def failing_source(directory: Path, name: str) -> tuple[Path, type[Exception]]:
    source = demo_source(directory)
    if name == "weights cut short":
        whole = (source / "model.safetensors").read_bytes()
        (source / "model.safetensors").write_bytes(whole[:-10])
        return source, CheckpointError
    if name == "no tokenizer":
        for file in TOKENIZER_FILES:
            (source / file).unlink()
        return source, TokenizerError
    if name == "quantized already":
        shutil.rmtree(source)
        helium_mlx.convert("demo", str(source), quantize=True, verify=False)
        return source, QuantizationError
    (source / "config.json").write_text('{"model_type": "helium"}')
    return source, CheckpointError


@pytest.mark.parametrize("name", ["weights cut short", "no tokenizer", "quantized already", "an empty config"])
def test_a_source_that_fails_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    source, error = failing_source(tmp_path, name)
    with pytest.raises(error) as caught:
        helium_mlx.convert(str(source), str(tmp_path / "x"))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"q_bits": 4}, QuantizationError),
        ({"q_group_size": 32}, QuantizationError),
        ({"quantize": True, "q_bits": 7}, QuantizationError),
        ({"quantize": True, "q_group_size": 16}, QuantizationError),
        ({"dtype": "float64"}, ConfigError),
    ],
)
def test_bad_options_are_refused_before_any_work(
    tmp_path: Path, options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        helium_mlx.convert("demo", str(tmp_path / "x"), **options)  # pyright: ignore[reportArgumentType]
    assert os.listdir(tmp_path) == []


def test_a_group_size_that_does_not_divide_is_refused_before_any_work(tmp_path: Path) -> None:
    source = demo_source(tmp_path)
    vocab_size = json_vocab_size()
    write_checkpoint(source, vocab_size=vocab_size, intermediate_size=160, hidden_size=64)
    with pytest.raises(QuantizationError, match=r"160 columns .*mlp\.down_proj; use 32"):
        helium_mlx.convert(str(source), str(tmp_path / "x"), quantize=True)
    assert os.listdir(tmp_path) == ["source"]


def test_an_exception_while_writing_leaves_the_old_directory(tmp_path: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"))
    before = contents(tmp_path / "x")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True, overwrite=True, on_progress=interrupt)
    assert contents(tmp_path / "x") == before
    assert os.listdir(tmp_path) == ["x"]


def test_ctrl_c_in_the_command_leaves_nothing(tmp_path: Path) -> None:
    code = """
import sys, time
from helium_mlx.checkpoint import row_blocks as blocks, weight_files
from helium_mlx.convert import main
def stuck(*_, **rows):
    print("writing", flush=True)
    while True:
        time.sleep(0.01)
weight_files.SafetensorsWriter.write = stuck
sys.exit(main(["--hf-path", "demo", "--mlx-path", sys.argv[1]]))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert os.listdir(tmp_path) == []


def test_an_eos_that_only_the_generation_config_names_is_written_into_the_config(tmp_path: Path) -> None:
    source = demo_source(tmp_path)
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(values | {"eos_token_id": None}))
    assert json.loads((source / "generation_config.json").read_text())["eos_token_id"] == 2
    helium_mlx.convert(str(source), str(tmp_path / "x"))
    assert json.loads((tmp_path / "x/config.json").read_text())["eos_token_id"] == 2


@pytest.mark.parametrize(
    "said_there", [{}, {"eos_token_id": None}, {"eos_token_id": []}, {"eos_token_id": -1}], ids=str
)
def test_an_eos_that_only_the_config_names_is_written_into_the_generation_config_and_said(
    tmp_path: Path, said_there: dict[str, object]
) -> None:
    source = demo_source(tmp_path)
    values = {"do_sample": True, "temperature": 0.6, **said_there}
    (source / "generation_config.json").write_text(json.dumps(values))
    report = helium_mlx.convert(str(source), str(tmp_path / "x"))
    written = json.loads((tmp_path / "x/generation_config.json").read_text())
    assert written == {"do_sample": True, "temperature": 0.6, "eos_token_id": 2}
    assert any("generation_config.json had no eos_token_id" in warning for warning in report.warnings)


def test_a_pad_token_that_stands_for_none_is_not_written_into_the_generation_config(tmp_path: Path) -> None:
    source = demo_source(tmp_path)
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(values | {"pad_token_id": -1}))
    (source / "generation_config.json").unlink()
    helium_mlx.convert(str(source), str(tmp_path / "x"))
    assert "pad_token_id" not in json.loads((tmp_path / "x/generation_config.json").read_text())
    model, _ = helium_mlx.load(tmp_path / "x")
    assert model.generate(mx.array([[1, 5]]), max_new_tokens=2).shape[0] == 1


def test_another_head_than_the_tied_embedding_is_kept_and_the_pair_untied(tmp_path: Path) -> None:
    source = demo_source(tmp_path)
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(values | {"tie_word_embeddings": True}))
    report = helium_mlx.convert(str(source), str(tmp_path / "x"))
    assert any("lm_head differs from the embedding" in warning for warning in report.warnings)
    assert json.loads((tmp_path / "x/config.json").read_text())["tie_word_embeddings"] is False
    ids = mx.array([[1, 5, 9]])
    assert mx.array_equal(load_model(tmp_path / "x")(ids).logits, load_model(DEMO_DIRECTORY)(ids).logits)


@pytest.mark.parametrize("quantize", [False, True])
def test_a_size_for_shards_is_kept(tmp_path: Path, quantize: bool) -> None:
    options: dict[str, object] = {"quantize": quantize, "verify": False}
    helium_mlx.convert("demo", str(tmp_path / "one"), **options)  # pyright: ignore[reportArgumentType]
    helium_mlx.convert("demo", str(tmp_path / "many"), max_shard_size=600_000, **options)  # pyright: ignore
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 1
    tensors: dict[str, mx.array] = {}
    for path in shards:
        infos = read_header(path)
        assert sum(info.end - info.start for info in infos.values()) <= 600_000
        assert all(index["weight_map"][name] == path.name for name in infos)
        loaded = mx.load(str(path))
        assert isinstance(loaded, dict)
        tensors |= loaded
    whole = mx.load(str(tmp_path / "one/model.safetensors"))
    assert isinstance(whole, dict)
    assert whole.keys() == tensors.keys() == index["weight_map"].keys()
    assert all(mx.array_equal(tensor, tensors[name]) for name, tensor in whole.items())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())


@pytest.mark.parametrize("options", [{}, {"quantize": True}, {"quantize": True, "q_mode": "mxfp8"}])
def test_the_result_does_not_depend_on_the_sources_shards(tmp_path: Path, options: dict[str, object]) -> None:
    for name, size in (("one", 10**9), ("few", 1_000_000), ("many", 1)):
        helium_mlx.convert("demo", str(tmp_path / name), max_shard_size=size, verify=False)
    digests = set()
    for name in ("one", "few", "many"):
        report = helium_mlx.convert(str(tmp_path / name), str(tmp_path / f"{name}-out"), **options)  # pyright: ignore
        digests.add(tuple(sorted(without_card(report).items())))
    assert len(digests) == 1
    assert len(list((tmp_path / "many").glob("*.safetensors"))) == 57


@pytest.mark.parametrize("row_block_bytes", [1, 5000])
def test_the_result_does_not_depend_on_the_row_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_block_bytes: int
) -> None:
    source = write_checkpoint(tmp_path / "source", vocab_size=json_vocab_size())
    for name in TOKENIZER_FILES:
        shutil.copy(DEMO_DIRECTORY / name, source)
    expected = helium_mlx.convert(str(source), str(tmp_path / "x"), quantize=True, q_group_size=32)
    monkeypatch.setattr(blocks, "ROW_BLOCK_BYTES", row_block_bytes)
    report = helium_mlx.convert(str(source), str(tmp_path / "y"), quantize=True, q_group_size=32)
    assert without_card(report) == without_card(expected)


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
@pytest.mark.parametrize("to", ["mlx", "hf"])
def test_dequantizing_gives_what_the_codes_stand_for(tmp_path: Path, mode: str, to: str) -> None:
    helium_mlx.convert("demo", str(tmp_path / "q"), quantize=True, q_mode=mode, verify=False)
    report = helium_mlx.convert(str(tmp_path / "q"), str(tmp_path / "x"), dequantize=True, dtype="float32", to=to)
    assert report.quantization is None
    assert "quantization" not in json.loads((tmp_path / "x/config.json").read_text())
    quantized, plain = load_model(tmp_path / "q", dtype="float32"), load_model(tmp_path / "x")
    assert relative_error(plain(PROMPT).logits, quantized(PROMPT).logits) < 1e-5
    with safe_open(tmp_path / "x/model.safetensors", framework="mlx") as file:
        assert file.metadata() == {"format": "pt" if to == "hf" else "mlx"}


def test_a_full_precision_conversion_can_be_quantized_as_its_source(tmp_path: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "plain"))
    again = helium_mlx.convert(str(tmp_path / "plain"), str(tmp_path / "x"), quantize=True)
    direct = helium_mlx.convert("demo", str(tmp_path / "y"), quantize=True)
    assert without_card(again) == without_card(direct)


def test_a_place_that_is_too_small_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 10**6))  # pyright: ignore
    with pytest.raises(CheckpointError, match=r"take 0\.004 GB, and 0\.001 GB are free"):
        helium_mlx.convert("demo", str(tmp_path / "x"))
    assert os.listdir(tmp_path) == []


def test_code_that_the_source_names_is_not_carried_on(tmp_path: Path) -> None:
    source = demo_source(tmp_path)
    values = json.loads((source / "config.json").read_text())
    values |= {"auto_map": {"AutoModel": "modeling.Trap"}, "model_file": "modeling.py", "trust_remote_code": True}
    (source / "config.json").write_text(json.dumps(values | {"kept": 1}))
    (source / "modeling.py").write_text("raise SystemExit")
    report = helium_mlx.convert(str(source), str(tmp_path / "x"))
    written = json.loads((tmp_path / "x/config.json").read_text())
    assert written["kept"] == 1
    assert not {"auto_map", "model_file", "trust_remote_code"} & written.keys()
    assert not (tmp_path / "x/modeling.py").exists()
    assert len(report.warnings) == 1
    assert all(name in report.warnings[0] for name in ("auto_map", "model_file", "trust_remote_code"))


def test_memory_does_not_grow_with_the_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ROW_BLOCK_BYTES", 1 << 16)
    peaks, sizes = [], []
    for layers in (2, 12):
        source = write_checkpoint(
            tmp_path / str(layers), vocab_size=json_vocab_size(), hidden_size=256, intermediate_size=512,
            num_attention_heads=4, num_key_value_heads=4, head_dim=64, num_hidden_layers=layers,
        )  # fmt: skip
        for name in TOKENIZER_FILES:
            shutil.copy(DEMO_DIRECTORY / name, source)
        mx.clear_cache()
        before = mx.get_active_memory()
        report = helium_mlx.convert(str(source), str(tmp_path / f"{layers}-out"), quantize=True)
        peaks.append(report.peak_memory - before)
        sizes.append((source / "model.safetensors").stat().st_size)
    # What is left are the caches and hidden states of the verification.
    assert peaks[1] - peaks[0] < 0.03 * (sizes[1] - sizes[0])


def test_a_revision_of_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a directory on this machine, which has no revision v1"):
        helium_mlx.convert(str(demo_source(tmp_path)), str(tmp_path / "x"), revision="v1")


def test_a_path_that_is_no_utf_8_is_carried_through(tmp_path: Path) -> None:
    source, destination = (tmp_path / os.fsdecode(name) for name in (b"in\xff", b"out\xfe"))
    try:
        shutil.copytree(DEMO_DIRECTORY, source)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    helium_mlx.convert(str(source), str(destination), quantize=True)
    # MLX itself opens no such path.
    assert open_checkpoint(destination).is_quantized


def test_dtypes_that_are_made_one_are_named(tmp_path: Path) -> None:
    tensors = mx.load(str(DEMO_DIRECTORY / "model.safetensors"))
    assert isinstance(tensors, dict)
    source = demo_source(tmp_path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(mx.float32)
    mx.save_safetensors(str(source / "model.safetensors"), tensors)
    report = helium_mlx.convert(str(source), str(tmp_path / "x"))
    assert report.warnings == [
        "the source has tensors in bfloat16 and float32; all are in bfloat16 now, dtype=... picks another"
    ]


def test_the_index_of_a_sharded_source_is_hashed(tmp_path: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "shards"), max_shard_size="1MB", verify=False)
    report = helium_mlx.convert(str(tmp_path / "shards"), str(tmp_path / "x"), verify=False)
    assert "model.safetensors.index.json" in report.source_files


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_shards_are_not_all_open_at_once(tmp_path: Path) -> None:
    code = """
import resource, sys
import helium_mlx
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
helium_mlx.convert("demo", sys.argv[1] + "/many", max_shard_size=1)
helium_mlx.convert(sys.argv[1] + "/many", sys.argv[1] + "/again", max_shard_size=1, quantize=True)
"""
    run_code(code, tmp_path, check=True)
    assert len(list((tmp_path / "again").glob("*.safetensors"))) == 145


def test_more_shards_than_are_read_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "MAX_SHARDS", 5)
    with pytest.raises(CheckpointError, match="makes 57 files, of which at most 5 are read"):
        helium_mlx.convert("demo", str(tmp_path / "x"), max_shard_size=1)
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_that_is_replaced_while_it_is_loaded_is_one_line(tmp_path: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"))
    opened = open_checkpoint(tmp_path / "x")
    helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True, overwrite=True)
    with pytest.raises(CheckpointError, match=r"x/model\.safetensors: was replaced while the checkpoint"):
        load_model(opened)
