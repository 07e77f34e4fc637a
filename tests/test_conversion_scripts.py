"""The scripts that write a random checkpoint and measure its conversion, on a shape that takes no time."""

import json
from itertools import combinations
from pathlib import Path

import mlx.core as mx
import pytest
from processes import EXAMPLES, run_code, run_example

TINY = "--hidden-size 64 --intermediate-size 128 --heads 4 --kv-heads 2 --head-dim 16 --vocab-size 2048 --layers 2"


def write(output: Path, *arguments: object) -> Path:
    result = run_example("write_random_checkpoint.py", "--output", output, *TINY.split(), *arguments)
    assert result.returncode == 0, result.stderr
    return output


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("written") / "random")


def tensors(directory: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for path in sorted(directory.glob("*.safetensors")):
        loaded = mx.load(str(path))
        assert isinstance(loaded, dict)
        found |= loaded
    return found


def is_true(value: mx.array) -> bool:
    return bool(value.item())


def test_the_checkpoint_opens_and_generates(written: Path) -> None:
    from helium_mlx import generate, load

    model, tokenizer = load(written)
    assert model.config.num_hidden_layers == 2
    assert model.config.rope_parameters["rope_theta"] == 100_000
    assert generate(model, tokenizer, "Once", max_tokens=2, ignore_eos=True)


def test_it_has_the_published_shape_where_nothing_else_is_said() -> None:
    code = (
        "import write_random_checkpoint as w; from helium_mlx import HeliumConfig; "
        "from helium_mlx.checkpoint.layout import tensor_shapes; "
        "from helium_mlx.checkpoint.quantization_settings import unquantized; "
        "from math import prod; print([sum(prod(s) for _, s in tensor_shapes(HeliumConfig.from_dict(w.SHAPES[name]), "
        "unquantized)) for name in ('preview', '1-2b')])"
    )
    result = run_code(code, check=True, cwd=EXAMPLES)
    assert json.loads(result.stdout) == [2_172_643_840, 2_023_868_416]


def test_all_values_are_finite_and_none_is_zero(written: Path) -> None:
    for name, tensor in tensors(written).items():
        assert tensor.dtype == mx.bfloat16
        assert is_true(mx.isfinite(tensor).all()), name
        assert is_true((tensor != 0).all()), name


def test_no_two_tensors_are_alike_and_products_keep_their_size(written: Path) -> None:
    found = tensors(written)
    starts = [tensor.reshape(-1)[:64] for tensor in found.values()]
    assert not any(is_true((a == b).all()) for a, b in combinations(starts, 2))
    for name, tensor in found.items():
        if tensor.ndim == 2:
            assert 0.9 < float(tensor.astype(mx.float32).std().item()) * tensor.shape[1] ** 0.5 < 1.1, name  # pyright: ignore[reportArgumentType]


def test_the_seed_decides_the_bytes(written: Path, tmp_path: Path) -> None:
    def weights(directory: Path) -> bytes:
        return (directory / "model.safetensors").read_bytes()

    assert weights(write(tmp_path / "again", "--seed", 0)) == weights(written)
    assert weights(write(tmp_path / "other", "--seed", 1)) != weights(written)


def test_shards_and_the_llama_shape(tmp_path: Path) -> None:
    from helium_mlx.checkpoint.checkpoint import open_checkpoint

    arguments = ("--shape", "1-2b", "--shard-bytes", 300_000, "--dtype", "float16")
    checkpoint = open_checkpoint(write(tmp_path / "sharded", *arguments))
    assert checkpoint.config.model_type == "llama"
    assert checkpoint.config.rope_parameters["rope_theta"] == 20_000
    assert checkpoint.dtype == "float16"
    assert len(checkpoint.files) > 1


def test_what_is_there_is_left_alone(written: Path) -> None:
    result = run_example("write_random_checkpoint.py", "--output", written, *TINY.split())
    assert result.returncode == 1
    assert result.stderr == f"error: {written} is there already; choose another name, or remove it\n"


def test_the_benchmark_prints_a_table_and_leaves_nothing(written: Path) -> None:
    before = sorted(written.parent.iterdir())
    result = run_example("benchmark_conversion.py", "--checkpoint", written, "--runs", 1)
    assert result.returncode == 0, result.stderr
    rows = [line.split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1::3]] == ["| 4-bit", "| 8-bit", "| unquantized"]
    assert {len(row) for row in rows} == {4}
    assert sorted(written.parent.iterdir()) == before


def test_the_sweep_has_the_checkpoints_shape_and_other_layers(written: Path) -> None:
    result = run_example(
        "benchmark_conversion.py", "--checkpoint", written, "--runs", 1, "--layers-sweep", "1,3", "--json"
    )
    assert result.returncode == 0, result.stderr
    measurements = json.loads(result.stdout)["measurements"]
    assert [m["case"] for m in measurements] == ["1 layers"] * 2 + ["3 layers"] * 2
    sizes = [m["runs"][0]["written_bytes"] for m in measurements]
    # Two layers of 4-bit weights of this shape, and their headers.
    assert 30_000 < sizes[2] - sizes[0] < 60_000
    assert all(m["runs"][0]["peak_bytes"] > 10_000_000 for m in measurements)


def test_a_failing_conversion_is_one_line(tmp_path: Path) -> None:
    result = run_example("benchmark_conversion.py", "--checkpoint", tmp_path / "nowhere")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1


def test_ratios_are_of_the_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from benchmark_conversion import BASELINE, CANDIDATE, ConversionRun, Measurement, table

    candidate = [ConversionRun(seconds, 200_000_000, 1_500_000) for seconds in (3.0, 1.0, 8.0)]
    baseline = [ConversionRun(seconds, 800_000_000, 1_500_000) for seconds in (12.0, 11.0, 40.0)]
    lines = table([Measurement("4-bit", CANDIDATE, candidate), Measurement("4-bit", BASELINE, baseline)]).splitlines()
    assert lines == [
        "|  |  | helium_mlx | mlx-lm | helium_mlx / mlx-lm |",
        "|--|--|--|--|--|",
        "| 4-bit | s | 3.00 (1.00 to 8.00) | 12.0 (11.0 to 40.0) | 0.250 |",
        "| 4-bit | peak resident memory, MB | 200 (200 to 200) | 800 (800 to 800) | 0.250 |",
        "| 4-bit | written, MB | 1.50 (1.50 to 1.50) | 1.50 (1.50 to 1.50) | 1.000 |",
    ]
