"""Every kind of output is opened by mlx-lm, with our logits, and has all that mlx-swift-lm's strict loader needs."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from converted_checkpoints import (
    SIZES,
    SOURCES,
    Options,
    converted_from,
    converted_into,
    source_in,
)
from measures import relative_error
from swift_loader import problems
from tiny_checkpoints import CASES, LLAMA

import helium_mlx
from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.checkpoint import open_checkpoint
from helium_mlx.checkpoint.quantization_settings import QuantizationSettings, config_entry
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.model.loading import load_model
from helium_mlx.quantization.recipes import RECIPES

# The values of a JSON file are of any type.
JsonEdit = Callable[[dict[str, Any]], object]

PROMPT = mx.array([[1, *range(300, 340)]])
# What an output is made by: one conversion after another.
OUTPUTS: dict[str, list[Options]] = {
    "as it comes": [{}],
    **{dtype: [{"dtype": dtype}] for dtype in ("bfloat16", "float16", "float32")},
    "-q": [{"quantize": True}],
    **{
        f"{bits} bits in groups of {group_size}": [{"quantize": True, "q_bits": bits, "q_group_size": group_size}]
        for bits, group_size in ((2, 32), (2, 128), (3, 64), (4, 32), (4, 128), (5, 32), (6, 128), (8, 32), (8, 64))
    },
    **{mode: [{"quantize": True, "q_mode": mode}] for mode in ("mxfp4", "mxfp8", "nvfp4")},
    **{recipe: [{"recipe": recipe}] for recipe in RECIPES},
    "a recipe in groups of 32": [{"recipe": "mixed_3_6", "q_group_size": 32}],
    "quantized, in float16": [{"quantize": True, "dtype": "float16"}],
    "in shards": [{"max_shard_size": 300_000}],
    "quantized, in shards": [{"recipe": "mixed_4_6_8", "max_shard_size": 300_000}],
    "dequantized": [{"quantize": True, "q_bits": 8}, {"dequantize": True}],
    "dequantized from a recipe": [{"recipe": "mixed_4_6"}, {"dequantize": True}],
    "dequantized from mxfp4": [{"quantize": True, "q_mode": "mxfp4"}, {"dequantize": True}],
    "requantized": [{"quantize": True, "q_bits": 8}, {"dequantize": True}, {"quantize": True, "q_group_size": 32}],
    "for transformers": [{"to": "hf"}],
    "for transformers, from a recipe": [{"recipe": "mixed_4_6"}, {"to": "hf"}],
}


@dataclass(frozen=True)
class Converted:
    """An output of `OUTPUTS` from one of `SOURCES`."""

    directory: Path
    output: str

    @property
    def last_step(self) -> Options:
        return OUTPUTS[self.output][-1]


EVERY_OUTPUT = [(source, output) for source in SOURCES for output in OUTPUTS]


@pytest.fixture(scope="module", params=EVERY_OUTPUT, ids=", ".join)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converted]:
    source, output = request.param
    directory = tmp_path_factory.mktemp("converted")
    yield Converted(converted_into(directory, source, OUTPUTS[output]), output)
    # All of them together would be half a gigabyte.
    shutil.rmtree(directory)


def mlx_lm_logits(directory: Path) -> mx.array:
    from mlx_lm.utils import load_model as load

    model, _ = load(directory, strict=True)
    model.set_dtype(mx.float32)
    return model(PROMPT)  # pyright: ignore[reportCallIssue]


def our_logits(directory: Path) -> mx.array:
    return load_model(directory, dtype="float32")(PROMPT).logits


def config_of(directory: Path) -> dict[str, object]:
    return json.loads((directory / "config.json").read_text(encoding="utf-8"))


def test_mlx_lm_opens_it_with_our_logits(converted: Converted) -> None:
    assert relative_error(mlx_lm_logits(converted.directory), our_logits(converted.directory)) <= 1e-5


def test_the_swift_loader_has_what_it_needs(converted: Converted) -> None:
    is_for_torch = converted.last_step.get("to") == "hf"
    expected = ["model.safetensors: metadata is {'format': 'pt'}"] if is_for_torch else []
    assert problems(converted.directory) == expected


def test_the_config_says_in_integers_how_it_is_quantized_under_both_names(converted: Converted) -> None:
    config = config_of(converted.directory)
    quantization, options = config.get("quantization"), converted.last_step
    assert (quantization is not None) == bool(options.get("quantize") or options.get("recipe"))
    assert quantization == config.get("quantization_config")
    if quantization is None:
        return
    assert isinstance(quantization, dict)
    for entry in (quantization, *(value for value in quantization.values() if isinstance(value, dict))):
        assert type(entry["group_size"]) is type(entry["bits"]) is int
        assert entry["mode"] == options.get("q_mode", "affine")
    if "recipe" not in options:
        assert quantization.keys() == {"group_size", "bits", "mode"}


@pytest.mark.parametrize("output", ["as it comes", "-q", "mxfp8", "mixed_4_6_8", "quantized, in shards", "dequantized"])
def test_tied_helium_which_swift_has_and_mlx_lm_cannot_open(tmp_path: Path, output: str) -> None:
    source = source_in(tmp_path / "source", {**CASES["helium-mqa-tied"], **SIZES})
    assert problems(converted_from(source, tmp_path, OUTPUTS[output])) == []


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "options",
    [{"quantize": True, "q_bits": 3}, {"quantize": True, "q_mode": "nvfp4"}, {"recipe": "mixed_2_6"}],
    ids=["3 bits", "nvfp4", "mixed_2_6"],
)
def test_dequantizing_to_float32_changes_no_logit(tmp_path: Path, source: str, options: Options) -> None:
    quantized = converted_into(tmp_path, source, [options])
    helium_mlx.convert(str(quantized), str(tmp_path / "back"), dequantize=True, dtype="float32")
    assert relative_error(our_logits(tmp_path / "back"), our_logits(quantized)) <= 1e-5


@pytest.mark.parametrize("output", ["float32", "mixed_4_6_8", "mxfp8"])
def test_mlx_lm_reads_the_same_ids_and_writes_the_same_text(tmp_path: Path, output: str) -> None:
    import mlx_lm

    directory = converted_into(tmp_path, "demo", OUTPUTS[output])
    theirs, their_tokenizer = mlx_lm.load(str(directory))[:2]
    theirs.set_dtype(mx.float32)
    ours, tokenizer = helium_mlx.load(directory, dtype="float32")
    prompt = tokenizer.encode("Il était une fois")
    assert their_tokenizer.encode("Il était une fois") == prompt
    assert their_tokenizer.eos_token_ids == set(tokenizer.eos_token_ids)
    expected = [chunk.token for chunk in helium_mlx.stream_generate(ours, tokenizer, prompt, max_tokens=40)]
    found = [chunk.token for chunk in mlx_lm.stream_generate(theirs, their_tokenizer, prompt, max_tokens=40)]
    assert found == expected


def test_a_module_that_stays_unquantized_is_read_as_that_by_all(tmp_path: Path) -> None:
    directory = converted_into(tmp_path, "llama", OUTPUTS["-q"])
    before = our_logits(directory)

    def unpack_the_head(tensors: dict[str, mx.array]) -> None:
        parts = [tensors.pop(f"lm_head.{suffix}") for suffix in ("weight", "scales", "biases")]
        tensors["lm_head.weight"] = mx.dequantize(*parts, group_size=64, bits=4)

    edit_tensors(directory, unpack_the_head)
    paths = [path for path, _ in layout.weight_shapes(open_checkpoint(directory).config)]
    packings = {path: QuantizationSettings(64, 4) for path in paths if path != "lm_head"}
    entry = config_entry(packings.get, paths)
    assert entry["lm_head"] is False
    edit_json(directory / "config.json", lambda config: config.update(quantization=entry, quantization_config=entry))
    assert problems(directory) == []
    assert relative_error(our_logits(directory), before) <= 1e-5
    assert relative_error(mlx_lm_logits(directory), before) <= 1e-5


# The checker itself: a good directory, broken in each way.


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("good")
    steps: list[Options] = [{"recipe": "mixed_4_6", "max_shard_size": 200_000}]
    return converted_into(directory, "llama", steps)


@pytest.fixture
def broken(good: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(good, tmp_path / "broken")


def edit_json(path: Path, edit: JsonEdit) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    edit(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def edit_tensors(directory: Path, edit: Callable[[dict[str, mx.array]], object], format: str = "mlx") -> None:
    """Edit all tensors of a checkpoint, and write them as one file."""
    tensors: dict[str, mx.array] = {}
    for path in directory.glob("*.safetensors"):
        loaded = mx.load(str(path))
        assert isinstance(loaded, dict)
        tensors |= loaded
    mx.eval(tensors)
    for path in (*directory.glob("*.safetensors"), *directory.glob("*.index.json")):
        path.unlink()
    edit(tensors)
    mx.save_safetensors(str(directory / "model.safetensors"), tensors, metadata={"format": format})


def test_the_checker_has_nothing_against_a_good_directory(broken: Path) -> None:
    assert problems(broken) == []
    edit_tensors(broken, lambda tensors: None)
    assert problems(broken) == []


Q_PROJ = "model.layers.1.self_attn.q_proj"
V_PROJ = "model.layers.2.self_attn.v_proj"

INTEGER_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "head_dim",
)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in INTEGER_KEYS for value in (None, 64.0, "64", True, 0)),
        *((key, value) for key in ("rope_theta", "rms_norm_eps") for value in (None, "1e-6", True)),
        ("tie_word_embeddings", None),
        ("tie_word_embeddings", 0),
        ("eos_token_id", None),
        ("eos_token_id", []),
        ("eos_token_id", [2, None]),
        ("model_type", "helium1"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "linear"}),
    ],
)
def test_the_checker_names_a_value_of_the_config_that_swift_cannot_decode(
    broken: Path, key: str, value: object
) -> None:
    edit_json(broken / "config.json", lambda config: config.update({key: value}))
    assert [problem.partition(" is ")[0] for problem in problems(broken)] == [key]


def test_the_checker_misses_a_value_that_is_not_there(broken: Path) -> None:
    edit_json(broken / "config.json", lambda config: config.pop("rope_theta"))
    assert problems(broken) == ["rope_theta is None, no number"]


@pytest.mark.parametrize("key", ["group_size", "bits", "mode"])
@pytest.mark.parametrize("value", [None, 64.0, "4", True])
@pytest.mark.parametrize("path", [None, V_PROJ])
def test_the_checker_names_a_quantization_that_swift_cannot_decode(
    broken: Path, path: str | None, key: str, value: object
) -> None:
    def edit(config: dict[str, Any]) -> None:
        entry = config["quantization"] if path is None else config["quantization"][path]
        assert isinstance(entry, dict)
        entry[key] = value

    edit_json(broken / "config.json", edit)
    what = "quantization" if path is None else f"quantization of {path}"
    assert f"{what}: {key} is {value!r}" in problems(broken)[0]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"layers.1.mlp.down_proj": False}, "names layers.1.mlp.down_proj, which is no module"),
        ({"model.norm": {"group_size": 64, "bits": 4, "mode": "affine"}}, "names model.norm, which is no module"),
        ({V_PROJ: None}, f"of {V_PROJ} is None"),
        ({V_PROJ: False}, f"{V_PROJ}.scales is no parameter"),
        ({V_PROJ: {"group_size": 64, "bits": 4, "mode": "affine"}}, f"{V_PROJ}.weight is [64, 24], not [64, 16]"),
        ({V_PROJ: {"group_size": 32, "bits": 6, "mode": "affine"}}, f"{V_PROJ}.scales is [64, 2], not [64, 4]"),
        ({V_PROJ: {"group_size": 32, "bits": 8, "mode": "mxfp8"}}, f"{V_PROJ}.biases is no parameter"),
        ({"bits": 3}, f"{Q_PROJ}.weight is [128, 16], not [128, 12]"),
    ],
)
def test_the_checker_names_settings_that_do_not_fit_the_tensors(
    broken: Path, entries: dict[str, object], said: str
) -> None:
    edit_json(broken / "config.json", lambda config: config["quantization"].update(entries))
    assert [problem for problem in problems(broken) if said in problem]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.pop("model.norm.weight"), "model.norm.weight is missing"),
        (lambda t: t.pop(f"{Q_PROJ}.biases"), f"{Q_PROJ}.biases is missing"),
        (lambda t: t.pop(f"{Q_PROJ}.bias"), f"{Q_PROJ}.bias is missing"),
        (lambda t: t.pop(f"{Q_PROJ}.scales"), f"{Q_PROJ}.weight is [128, 16], not [128, 128]"),
        (
            lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": mx.ones((16,))}),
            "inv_freq is no parameter",
        ),
        (lambda t: t.update({"score.weight": mx.ones((2, 128))}), "score.weight is no parameter"),
        (lambda t: t.update({"model.norm.weight": mx.ones((64,))}), "model.norm.weight is [64], not [128]"),
        (lambda t: t.update({"model.norm.weight": t["model.norm.weight"].astype(mx.int32)}), "norm.weight is I32"),
        (lambda t: t.update({f"{Q_PROJ}.weight": t[f"{Q_PROJ}.weight"].astype(mx.int32)}), f"{Q_PROJ}.weight is I32"),
        (lambda t: t.update({f"{Q_PROJ}.scales": t[f"{Q_PROJ}.scales"].astype(mx.float16)}), "dtypes, F16, F32"),
        (lambda t: t.update({f"{Q_PROJ}.biases": t[f"{Q_PROJ}.biases"].astype(mx.float16)}), "dtypes, F16, F32"),
    ],
)
def test_the_checker_names_a_tensor_that_does_not_fit(
    broken: Path, edit: Callable[[dict[str, mx.array]], object], said: str
) -> None:
    edit_tensors(broken, edit)
    assert [problem for problem in problems(broken) if said in problem]


def test_the_checker_names_a_head_beside_a_tied_embedding(broken: Path) -> None:
    edit_json(broken / "config.json", lambda config: config.update(tie_word_embeddings=True))
    found = problems(broken)
    assert "lm_head.weight is no parameter of the model" in found
    assert "quantization names lm_head, which is no module of the model" in found


@pytest.mark.parametrize("format", ["pt", "np"])
def test_the_checker_names_files_for_something_else(broken: Path, format: str) -> None:
    edit_tensors(broken, lambda tensors: None, format)
    assert problems(broken) == [f"model.safetensors: metadata is {{'format': '{format}'}}"]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda index: index["weight_map"].pop("model.norm.weight"), "index has model.norm.weight elsewhere"),
        (
            lambda index: index["weight_map"].update(more=index["weight_map"]["lm_head.weight"]),
            "index has more elsewhere",
        ),
        (
            lambda index: index["weight_map"].update({"lm_head.weight": index["weight_map"]["model.norm.weight"]}),
            "index has lm_head.weight elsewhere",
        ),
        (lambda index: index["weight_map"].update({"lm_head.weight": "other.safetensors"}), "other.safetensors is not"),
        (lambda index: index["metadata"].update(total_size=1), "index says 1 bytes"),
    ],
)
def test_the_checker_names_what_is_wrong_with_an_index(broken: Path, edit: JsonEdit, said: str) -> None:
    edit_json(broken / "model.safetensors.index.json", edit)
    assert [problem for problem in problems(broken) if said in problem]


def test_the_checker_names_files_that_are_missing_or_do_not_belong_there(broken: Path) -> None:
    first, second = sorted(broken.glob("*.safetensors"))[:2]
    shutil.copy(first, broken / "weights.safetensors")
    (broken / "nested").mkdir()
    shutil.copy(first, broken / "nested/model.safetensors")
    second.unlink()
    found = problems(broken)
    for said in (
        "weights.safetensors is no part",
        "nested/model.safetensors is no part",
        f"{second.name} is not there",
    ):
        assert [problem for problem in found if said in problem]


def test_the_checker_names_a_tensor_that_is_in_two_files(broken: Path) -> None:
    first, second = sorted(broken.glob("*.safetensors"))[:2]
    shutil.copy(first, second)
    assert [problem for problem in problems(broken) if f"in {first.name} and in {second.name}" in problem]


def test_the_checker_wants_a_tokenizer_json_unless_told_otherwise(broken: Path) -> None:
    (broken / "tokenizer.json").unlink()
    assert problems(broken) == ["there is no tokenizer.json"]
    assert problems(broken, needs_tokenizer_json=False) == []


def test_what_comes_with_sentencepieces_model_only_lacks_nothing_else_and_a_warning_says_so(tmp_path: Path) -> None:
    source = shutil.copytree(DEMO_DIRECTORY, tmp_path / "source")
    (source / "tokenizer.json").unlink()
    report = helium_mlx.convert(str(source), str(tmp_path / "x"), quantize=True)
    assert problems(tmp_path / "x") == ["there is no tokenizer.json"]
    assert problems(tmp_path / "x", needs_tokenizer_json=False) == []
    assert ["tokenizer.json" in warning for warning in report.warnings] == [True]


def test_what_the_package_saves_itself_passes_too(tmp_path: Path) -> None:
    source = source_in(tmp_path / "source", {**LLAMA, **SIZES})
    helium_mlx.HeliumForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "saved")
    assert problems(tmp_path / "saved", needs_tokenizer_json=False) == []
