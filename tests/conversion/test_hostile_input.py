"""A checkpoint of a stranger's: whatever is in it, one line refuses it, and nothing is run, left behind or allocated.

`HELIUM_MLX_FUZZ_CASES` sets how many mutated checkpoints are tried, `HELIUM_MLX_FUZZ_FIRST` where their numbers begin.
"""

import json
import os
import pickle
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fuzzing
import mlx.core as mx
import pytest
from processes import run_python
from tiny_checkpoints import config_values

from helium_mlx import convert
from helium_mlx.checkpoint.checkpoint import open_checkpoint
from helium_mlx.checkpoint.config import MAX_LABELS, HeliumConfig
from helium_mlx.errors import CheckpointError, ConfigError, HeliumError, TokenizerError
from helium_mlx.files.names import INDEX_FILE
from helium_mlx.model.loading import load, load_model
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

CASES = int(os.environ.get("HELIUM_MLX_FUZZ_CASES", "2500"))
FIRST = int(os.environ.get("HELIUM_MLX_FUZZ_FIRST", "0"))
BATCH, WORKERS = 1250, 2

JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
READERS: dict[str, Callable[[Path], object]] = {
    "open": open_checkpoint,
    "load": load_model,
    "convert": lambda directory: convert(str(directory), str(directory.parent / "result"), overwrite=False),
    "tokenizer": HeliumTokenizer.from_pretrained,
}


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bases")
    fuzzing.write_bases(directory)
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A good checkpoint of one weight file, to be spoilt."""
    fuzzing.write_bases(tmp_path / "bases")
    return (tmp_path / "bases" / "whole").rename(tmp_path / "source")


def change_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refusal(directory: Path, reader: Callable[[Path], object] = open_checkpoint) -> str:
    """The one line that refuses a directory, in little CPU time and memory; nothing else appears beside it."""
    before, start = sorted(directory.parent.iterdir()), time.process_time()
    mx.reset_peak_memory()
    # What other tests still hold is part of every peak.
    held = mx.get_active_memory()
    with pytest.raises(HeliumError) as caught:
        reader(directory)
    assert mx.get_peak_memory() - held < 10_000_000
    assert time.process_time() - start < 5
    assert sorted(directory.parent.iterdir()) == before
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < fuzzing.MAX_MESSAGE
    return message


# --- mutated checkpoints


def run_batch(bases: Path, at: Path, first: int, count: int, *more: str) -> str:
    """Try cases in a process of their own; return what went wrong."""
    words = ["--bases", bases, "--at", at, "--first", first, "--count", count, *more]
    done = run_python(fuzzing.__file__, *words, timeout=None)
    if done.returncode:
        done.stdout += (
            f"\ncase {at.read_text().strip()} ended the process with {done.returncode}: {done.stderr[-2000:]}"
        )
    return done.stdout


def test_mutated_checkpoints_are_read_or_refused_in_one_line(bases: Path, tmp_path: Path) -> None:
    batches = range(FIRST, FIRST + CASES, BATCH)
    with ThreadPoolExecutor(WORKERS) as pool:
        found = pool.map(
            lambda first: run_batch(bases, tmp_path / str(first), first, min(BATCH, FIRST + CASES - first)), batches
        )
    assert "".join(found) == ""


@pytest.mark.parametrize("name", ["tokenizer.json", "README.md"])
def test_mutated_tokenizers_and_cards_are_read_or_refused_in_one_line(bases: Path, tmp_path: Path, name: str) -> None:
    """Ids in post-processors, added tokens and vocabularies; normalizers and their tables; metadata of cards."""
    assert run_batch(bases, tmp_path / "at", FIRST, CASES // 20, "--only", name) == ""


def test_what_is_mutated_is_good_before(bases: Path, tmp_path: Path) -> None:
    for base in fuzzing.BASES:
        model, tokenizer = load(bases / base)
        assert mx.isfinite(model(mx.array([tokenizer.encode("the file")])).logits).all()
        convert(str(bases / base), str(tmp_path / base), dequantize=base == "quantized")


# --- code


class Trap:
    """Unpickled, it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


def set_traps(directory: Path, sprung: Path) -> None:
    code = f"import os\nos.mkdir({str(sprung)!r})\n"
    for name in (
        "modeling_evil.py",
        "configuration_evil.py",
        "tokenization_evil.py",
        "__init__.py",
        "sitecustomize.py",
    ):
        (directory / name).write_text(code)
    for name in ("pytorch_model.bin", "model.npz", "model.pt", "training_args.bin", "optimizer.pkl"):
        (directory / name).write_bytes(pickle.dumps(Trap(sprung)))
    auto_map = {"AutoConfig": "configuration_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
    change_config(
        directory, auto_map=auto_map, model_file="modeling_evil.py", trust_remote_code=True, custom_pipelines={"x": {}}
    )
    tokenizer_config = {"auto_map": {"AutoTokenizer": ["tokenization_evil.Tokenizer", None]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))


def test_no_code_of_a_checkpoint_is_run(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sprung = tmp_path / "sprung"
    set_traps(directory, sprung)
    monkeypatch.chdir(directory)
    with pytest.warns(UserWarning, match="auto_map in config.json") as said:
        load(directory)
    convert(str(directory), str(tmp_path / "result"))
    assert not sprung.exists()
    assert not list(directory.rglob("__pycache__"))
    assert not [path.name for path in (tmp_path / "result").iterdir() if path.suffix in (".py", ".bin", ".pt", ".npz")]
    assert len([warning for warning in said if "ignored" in str(warning.message)]) == 1
    pickle.loads((directory / "pytorch_model.bin").read_bytes())
    assert sprung.exists()


def test_what_asks_for_code_is_named_in_one_sentence(directory: Path, tmp_path: Path) -> None:
    assert open_checkpoint(directory).warnings == ()
    set_traps(directory, tmp_path / "sprung")
    (said,) = open_checkpoint(directory).warnings
    for name in ("auto_map in config.json", "model_file", "trust_remote_code", "custom_pipelines", "auto_map in token"):
        assert name in said


def test_a_false_trust_remote_code_asks_for_nothing(directory: Path) -> None:
    change_config(directory, trust_remote_code=False, auto_map=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(directory)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.npz", "model.gguf", "model.pt"])
def test_other_formats_are_named_and_not_read(directory: Path, tmp_path: Path, name: str) -> None:
    (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    message = refusal(directory)
    assert f"'{name}'" in message
    assert "only safetensors" in message
    assert not (tmp_path / "sprung").exists()


# --- files that are none


PIPES = (
    *(("open", name) for name in ("config.json", "tokenizer_config.json", "model.safetensors", INDEX_FILE)),
    *(("load", name) for name in ("config.json", "model.safetensors")),
    *(("tokenizer", name) for name in (*JSON_FILES, "added_tokens.json", "special_tokens_map.json", "tokenizer.model")),
    *(("convert", name) for name in (*JSON_FILES, "added_tokens.json", "tokenizer.model", "model.safetensors")),
)


@pytest.mark.parametrize(("reader", "name"), PIPES)
def test_a_pipe_does_not_hang(directory: Path, name: str, reader: str) -> None:
    if name == INDEX_FILE:
        (directory / "model.safetensors").unlink()
    (directory / name).unlink(missing_ok=True)
    os.mkfifo(directory / name)
    message = refusal(directory, READERS[reader])
    assert name in message
    assert "not a regular file" in message


@pytest.mark.parametrize("name", ["generation_config.json", INDEX_FILE])
def test_a_pipe_that_the_model_can_do_without_does_not_hang(directory: Path, name: str) -> None:
    (directory / name).unlink(missing_ok=True)
    os.mkfifo(directory / name)
    (said,) = open_checkpoint(directory).warnings
    assert name in said


def test_a_directory_by_a_files_name_is_refused(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").mkdir()
    assert "Is a directory" in refusal(directory)


@pytest.mark.parametrize("name", [*JSON_FILES, "model.safetensors", "special_tokens_map.json"])
def test_a_link_out_of_the_directory_is_refused(directory: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("{}")
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to("../secret")
    message = refusal(directory, READERS["convert"])
    assert f"{name}" in message
    assert "outside of the checkpoint" in message


def test_a_link_within_the_directory_and_a_linked_directory_are_read(directory: Path, tmp_path: Path) -> None:
    (directory / "model.safetensors").rename(directory / "weights")
    (directory / "model.safetensors").symlink_to("weights")
    (tmp_path / "name").symlink_to(directory)
    assert open_checkpoint(tmp_path / "name").tensors


def in_cache(directory: Path, root: Path, other: str = "models--x--y") -> Path:
    """Lay a checkpoint out as the Hub's cache does, its weights in the blobs of `other`."""
    snapshot, blobs = root / "models--x--y/snapshots/0123", root / other / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in directory.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../..") / other / "blobs" / path.name)
    return snapshot


def test_links_in_the_hubs_cache_are_read(directory: Path, tmp_path: Path) -> None:
    load(in_cache(directory, tmp_path / "cache"))


def test_links_to_another_repositorys_cache_are_refused(directory: Path, tmp_path: Path) -> None:
    assert "outside of the checkpoint" in refusal(in_cache(directory, tmp_path / "cache", "models--x--private"))


# --- numbers


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 2**31 - 1},
        {"num_hidden_layers": 10**9, "vocab_size": 10**9, "intermediate_size": 10**9},
        {"vocab_size": 10**9},
        {"intermediate_size": 2**31 - 1},
        {"num_attention_heads": 2**30, "num_key_value_heads": 2**30, "head_dim": 2, "hidden_size": 2**31 - 2},
        {"num_labels": 2**31 - 1},
        {"eos_token_id": [2] * 1_000_000},
        {"id2label": {str(10**9): "x"}},
        {"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0] * 10**5, "short_factor": [1.0] * 10**5}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 1e300}},
        {"quantization": {"group_size": 32, "bits": 4.0}},
    ],
    ids=lambda values: ",".join(values),
)
@pytest.mark.parametrize("reader", [open_checkpoint, load_model, READERS["convert"]], ids=["open", "load", "convert"])
def test_a_config_cannot_ask_for_more_than_the_tensors(
    directory: Path, values: dict[str, object], reader: Callable[[Path], object]
) -> None:
    change_config(directory, **values)
    assert str(directory) in refusal(directory, reader)


def test_a_long_context_costs_nothing(directory: Path) -> None:
    change_config(directory, max_position_embeddings=2**31 - 1)
    mx.reset_peak_memory()
    model, tokenizer = load(directory)
    mx.eval(model(mx.array([tokenizer.encode("the file")])).logits)
    assert mx.get_peak_memory() < 20_000_000


def test_labels_are_counted_before_they_are_named() -> None:
    with pytest.raises(ConfigError, match="num_labels"):
        HeliumConfig(num_labels=MAX_LABELS + 1)
    assert HeliumConfig(num_labels=1000).num_labels == 1000


def test_a_packed_matrix_of_no_bytes_bears_out_no_size(directory: Path) -> None:
    rows, columns = 2**31 - 1, 4
    values = config_values(
        **fuzzing.CONFIG | {"vocab_size": rows, "hidden_size": columns, "num_attention_heads": 2, "head_dim": 2},
        quantization={"group_size": 32, "bits": 4},
    )
    (directory / "config.json").write_text(json.dumps(values))
    path = directory / "model.safetensors"
    tensors: dict[str, object] = {}
    for name in ("weight", "scales", "biases"):
        dtype = "U32" if name == "weight" else "F32"
        tensors[f"model.embed_tokens.{name}"] = {"dtype": dtype, "shape": [rows, 0], "data_offsets": [0, 0]}
    text = json.dumps(tensors).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert "without elements" in refusal(directory)


def test_groups_that_do_not_divide_the_columns_are_refused(tmp_path: Path) -> None:
    fuzzing.write_bases(tmp_path)
    directory = tmp_path / "quantized"
    # 32 columns of 4 bits are 4 words, whatever the group; one scale a row is what floor(32 / 64) + 1 would be.
    change_config(directory, quantization={"group_size": 64, "bits": 4})
    assert "expected" in refusal(directory)


# --- text


def test_what_a_message_quotes_is_short_and_printable(directory: Path) -> None:
    for value in ("\x1b[2J\n" * 10, "x" * 1_000_000, ["\r"] * 50, {"\n": "\x00"}):
        for key in ("model_type", "hidden_act", "dtype", "vocab_size", "rope_scaling", "id2label", "num_labels"):
            config = json.loads((directory / "config.json").read_text())
            (directory / "config.json").write_text(json.dumps(config | {key: value}))
            if key == "rope_scaling" and isinstance(value, dict):
                # Without effect, so that it is left out.
                (said,) = open_checkpoint(directory).warnings
                assert said.isprintable()
                (directory / "config.json").write_text(json.dumps(config))
                continue
            with pytest.raises(HeliumError) as caught:
                open_checkpoint(directory)
                pytest.fail(f"{key} was read")
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < fuzzing.MAX_MESSAGE
            (directory / "config.json").write_text(json.dumps(config))


def test_a_large_file_is_refused_unread(directory: Path) -> None:
    for name in JSON_FILES:
        original = (directory / name).read_bytes()
        os.truncate(directory / name, 10**12)
        message = refusal(directory, READERS["convert"])
        assert f"{name}" in message
        assert "1000000000000 bytes" in message
        (directory / name).write_bytes(original)


def test_a_deep_tokenizer_is_refused(directory: Path) -> None:
    nested = '{"type":"Sequence","decoders":[' * 20_000
    (directory / "tokenizer.json").write_text(f'{{"decoder":{nested}')
    assert "not a tokenizer" in refusal(directory, READERS["tokenizer"])


def test_a_template_with_an_undefined_token_is_refused_before_rust_panics(
    directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    values = json.loads((directory / "tokenizer.json").read_text())
    template = values["post_processor"] | {"special_tokens": {}}
    values["post_processor"] = {"type": "Sequence", "processors": [template]}
    (directory / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(TokenizerError, match="names the token '<s>' without defining it"):
        HeliumTokenizer.from_pretrained(directory)
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("old", "new"), [("▁Paris".encode(), b"\xff" * 8), (b"<unk>\x15\0\0\0\0\x18\x02", b"<unk>\x15\0\0\0\0\x18\x01")]
)
def test_a_sentencepiece_model_with_a_broken_piece_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    fuzzing.write_bases(tmp_path)
    path = tmp_path / "sharded/tokenizer.model"
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    assert "not a SentencePiece model" in refusal(tmp_path / "sharded", READERS["tokenizer"])


# --- the index


def change_index(directory: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda names: names.update({"model.norm.weight": "model-00002-of-00002.safetensors"}), "where it is not"),
        (lambda names: names.update({"x": "model-00002-of-00002.safetensors"}), "'x' in model-00002.*where it is not"),
        (lambda names: names.pop("model.norm.weight"), r"does not name model\.norm\.weight"),
        (lambda names: names.update({"x": "more.safetensors"}), "more.safetensors, which is not there"),
        (lambda names: names.update({"x": "../y.safetensors"}), "bare name"),
        (lambda names: names.update({"x": "y\n.safetensors"}), "bare name"),
        (lambda names: names.update({f"{i}": f"{i}.safetensors" for i in range(1001)}), "1003 shards"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(
    tmp_path: Path, change: Callable[[dict[str, str]], object], said: str
) -> None:
    fuzzing.write_bases(tmp_path)
    change_index(tmp_path / "sharded", change)
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(tmp_path / "sharded")


def test_one_file_counts_where_there_is_one_even_if_it_is_damaged(tmp_path: Path) -> None:
    # As in transformers; the index beside it is older, and names shards of another model.
    fuzzing.write_bases(tmp_path)
    assert len(open_checkpoint(tmp_path / "sharded").files) == 2
    (tmp_path / "sharded/model.safetensors").write_bytes(b"")
    assert "sharded/model.safetensors: not a safetensors file" in refusal(tmp_path / "sharded")
