"""transformers opens what `--to hf` writes, and what is written for MLX at full precision, with the same logits."""

import sys
from pathlib import Path

import mlx.core as mx
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parent.parent / "reference"))

from converted_checkpoints import SIZES, SOURCES, Options, converted_from, source_in  # noqa: E402
from make_selfcheck_reference import AUTO_CLASSES, to_mlx, to_torch  # noqa: E402
from tiny_checkpoints import CASES  # noqa: E402

import helium_mlx  # noqa: E402
from helium_mlx.checkpoint.layout import Architecture  # noqa: E402
from helium_mlx.diagnostics.selfcheck_cases import config_values, write_checkpoint, write_tensors  # noqa: E402
from helium_mlx.diagnostics.selfcheck_runs import relative_error  # noqa: E402
from helium_mlx.files.hub import DEMO_DIRECTORY  # noqa: E402
from helium_mlx.model.loading import load_model  # noqa: E402

pytestmark = pytest.mark.parity

IDS = mx.array([[1, *range(300, 340)], [1, *range(500, 540)]])

EVERY_SOURCE: dict[str, Options | None] = {**SOURCES, "tied helium": {**CASES["helium-mqa-tied"], **SIZES}}

# A full-precision output, and the conversions that make it.
FULL_PRECISION: dict[str, list[Options]] = {
    "for transformers": [{"to": "hf"}],
    "for transformers, in shards": [{"to": "hf", "max_shard_size": 300_000}],
    "for transformers, by way of MLX": [{}, {"to": "hf"}],
    "for MLX": [{}],
    "for MLX, in shards": [{"max_shard_size": 300_000}],
}
QUANTIZED: dict[str, Options] = {
    "4 bits": {"quantize": True},
    "mxfp4": {"quantize": True, "q_mode": "mxfp4"},
    "mixed_3_6": {"recipe": "mixed_3_6"},
}

every_source = pytest.mark.parametrize("source", EVERY_SOURCE)


def theirs(directory: Path, architecture: Architecture = "ForCausalLM", dtype: str = "float32"):  # noqa: ANN201
    """Return transformers' model, which must have found all of its tensors in the directory, and no other ones."""
    model, found = AUTO_CLASSES[architecture].from_pretrained(directory, dtype=dtype, output_loading_info=True)
    assert {kind: list(names) for kind, names in found.items() if names} == {}
    return model.eval()


def their_output(directory: Path, architecture: Architecture = "ForCausalLM") -> mx.array:
    with torch.no_grad():
        return to_mlx(theirs(directory, architecture)(to_torch(IDS))[0])


def are_equal(a: mx.array, b: mx.array) -> bool:
    return bool(mx.array_equal(a, b).item())


@every_source
@pytest.mark.parametrize("output", FULL_PRECISION)
def test_transformers_opens_it_with_the_logits_of_the_source(tmp_path: Path, source: str, output: str) -> None:
    path = source_in(tmp_path / "source", EVERY_SOURCE[source])
    converted = converted_from(path, tmp_path, FULL_PRECISION[output])
    assert are_equal(their_output(converted), their_output(path))
    ours = load_model(converted, dtype="float32")(IDS).logits
    assert relative_error(ours, their_output(converted)) <= 1e-5


@every_source
@pytest.mark.parametrize("quantized", QUANTIZED)
def test_transformers_opens_what_was_quantized_with_our_logits(tmp_path: Path, source: str, quantized: str) -> None:
    path = source_in(tmp_path / "source", EVERY_SOURCE[source])
    for_mlx = converted_from(path, tmp_path / "mlx", [QUANTIZED[quantized]])
    exact = converted_from(for_mlx, tmp_path / "exact", [{"to": "hf", "dtype": "float32"}])
    rounded = converted_from(for_mlx, tmp_path / "rounded", [{"to": "hf", "dtype": "bfloat16"}])
    dequantized = converted_from(for_mlx, tmp_path / "back", [{"dequantize": True, "dtype": "bfloat16"}])
    assert relative_error(load_model(for_mlx, dtype="float32")(IDS).logits, their_output(exact)) <= 1e-5
    assert relative_error(load_model(dequantized, dtype="float32")(IDS).logits, their_output(rounded)) <= 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("options", [{"to": "hf"}, {}], ids=["for transformers", "for MLX"])
def test_the_dtype_of_the_source_is_kept_or_what_was_asked_for(tmp_path: Path, dtype: str, options: Options) -> None:
    source = source_in(tmp_path / "source", SOURCES["llama"])
    kept = DEMO_DIRECTORY if dtype == "bfloat16" else source
    if dtype == "float16":
        loaded = mx.load(str(source / "model.safetensors"))
        assert isinstance(loaded, dict)
        mx.eval(loaded)
        write_tensors(source / "model.safetensors", loaded, dtype)
    converted = {
        "kept": converted_from(kept, tmp_path / "kept", [options]),
        "asked for": converted_from(DEMO_DIRECTORY, tmp_path / "asked", [{**options, "dtype": dtype}]),
    }
    for name, directory in converted.items():
        model = theirs(directory, dtype="auto")
        assert {tensor.dtype for tensor in model.state_dict().values()} == {getattr(torch, dtype)}, name


@pytest.mark.parametrize("architecture", ["Model", "ForSequenceClassification", "ForTokenClassification"])
@pytest.mark.parametrize("model_type", ["helium", "llama"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("options", [{"to": "hf"}, {}], ids=["for transformers", "for MLX"])
def test_transformers_opens_other_heads(
    tmp_path: Path, architecture: Architecture, model_type: str, tied: bool, options: Options
) -> None:
    source = source_in(tmp_path / "source", SOURCES[model_type])
    values = config_values(**(SOURCES[model_type] or {}), num_labels=3, tie_word_embeddings=tied)
    write_checkpoint(source, values, architecture)
    converted = converted_from(source, tmp_path, [options])
    assert are_equal(their_output(converted, architecture), their_output(source, architecture))


@pytest.mark.parametrize("architecture", ["ForSequenceClassification", "ForTokenClassification"])
def test_transformers_opens_a_head_that_was_quantized(tmp_path: Path, architecture: Architecture) -> None:
    source = source_in(tmp_path / "source", SOURCES["helium"])
    write_checkpoint(source, config_values(**(SOURCES["helium"] or {}), num_labels=3), architecture)
    quantized = converted_from(source, tmp_path / "mlx", [{"quantize": True}])
    converted = converted_from(quantized, tmp_path / "hf", [{"to": "hf"}])
    ours = getattr(helium_mlx, f"Helium{architecture}").from_pretrained(quantized, dtype="float32")
    assert relative_error(ours(IDS)[0], their_output(converted, architecture)) <= 1e-5
