"""Kernels a token, ours beside mlx-lm's: the bounds that a change to model, cache or sampling has to keep."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest

from helium_mlx import backend
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.diagnostics.gpu_kernels import PRECISIONS, as_on_gpu, kernels, write_small_model
from helium_mlx.diagnostics.graph_size import Operations
from helium_mlx.diagnostics.worker import PROGRAMS, STEPS, counted

LAYERS = 8

# At most so many times mlx-lm's.
BOUNDS = {"alone": 0.78, "rotating cache": 0.78, "8-bit cache": 0.78, "batch of 4": 0.85}
NODES_BOUND = 0.7

Counts = dict[tuple[str, str, str], Operations]


@pytest.fixture(scope="module")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    config = HeliumConfig.from_dict({"num_hidden_layers": LAYERS, "head_dim": 128})
    for name, bits in PRECISIONS.items():
        write_small_model(directory / name, config, bits)
    return directory


@pytest.fixture(scope="module")
def counts(small_models: Path) -> Counts:
    pytest.importorskip("mlx_lm")
    found = {}
    for name, program in PROGRAMS.items():
        for precision in PRECISIONS:
            opened = program(small_models / precision)
            for kind in STEPS:
                operations = counted(opened, directory=str(small_models / precision), kind=kind)
                if operations is not None:
                    found[name, precision, kind] = operations
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("kind", "bound"), BOUNDS.items())
def test_a_token_takes_fewer_kernels_than_mlx_lms(counts: Counts, precision: str, kind: str, bound: float) -> None:
    ours, theirs = (kernels(counts[program, precision, kind]) for program in PROGRAMS)
    assert ours <= bound * theirs


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sampling_adds_no_more_than_mlx_lms_sampler(counts: Counts, precision: str) -> None:
    ours, theirs = (
        kernels(counts[program, precision, "top-p sampling"]) - kernels(counts[program, precision, "alone"])
        for program in PROGRAMS
    )
    assert 0 < ours <= theirs


@pytest.mark.parametrize("precision", PRECISIONS)
def test_python_builds_fewer_nodes(counts: Counts, precision: str) -> None:
    ours, theirs = (counts[program, precision, "alone"].total() for program in PROGRAMS)
    assert ours <= NODES_BOUND * theirs


def test_nothing_that_stays_the_same_is_computed_at_every_token(counts: Counts) -> None:
    views = {"ExpandDims", "Reshape", "Slice", "Split", "Squeeze", "Transpose"}
    found = counts["helium_mlx", "bfloat16", "alone"]
    gate = next(name for name in found if name.startswith("Compiled"))
    assert {name: count for name, count in found.items() if name not in views} == {
        "Depends": 4 * LAYERS + 1,  # two norms, RoPE and attention a layer, and the last norm
        "Matmul": 2 * LAYERS + 1,
        "AddMM": 2 * LAYERS,
        "SliceUpdate": LAYERS,
        gate: LAYERS,
        "Gather": 1,
        "ArgReduce": 1,
        "Max": 1,
    }


def test_masks_of_full_caches_and_of_batches_are_one_kernel_or_none(counts: Counts) -> None:
    for precision in PRECISIONS:
        alone, rotating = (counts["helium_mlx", precision, kind] for kind in ("alone", "rotating cache"))
        assert kernels(rotating) == kernels(alone) + 1
        assert not {"Arange", "GreaterEqual"} & counts["helium_mlx", precision, "batch of 4"].keys()


def test_a_pass_with_drafts_takes_a_few_more_kernels_than_a_token(counts: Counts) -> None:
    for precision in PRECISIONS:
        alone, drafts = (counts["helium_mlx", precision, kind] for kind in ("alone", "drafts by lookup"))
        assert kernels(alone) < kernels(drafts) <= kernels(alone) + LAYERS + 2


def test_a_cast_is_seen(small_models: Path, counts: Counts, monkeypatch: pytest.MonkeyPatch) -> None:
    def casting(self: nn.RMSNorm, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x.astype(mx.float32), self.weight.astype(mx.float32), self.eps).astype(x.dtype)

    monkeypatch.setattr(nn.RMSNorm, "__call__", casting)
    directory = small_models / "bfloat16"
    found = counted(PROGRAMS["helium_mlx"](directory), directory=str(directory), kind="alone")
    assert found is not None
    assert found["AsType"] == 3 * (2 * LAYERS + 1)
    assert kernels(found) == kernels(counts["helium_mlx", "bfloat16", "alone"]) + found["AsType"]


def test_everything_is_itself_again_afterwards() -> None:
    before = (mx.fast.rms_norm, mx.fast.rope, mx.fast.scaled_dot_product_attention, mx.dequantize, backend.is_cpu)
    with pytest.raises(ZeroDivisionError), as_on_gpu():
        assert mx.fast.rms_norm is not before[0]
        raise ZeroDivisionError
    after = (mx.fast.rms_norm, mx.fast.rope, mx.fast.scaled_dot_product_attention, mx.dequantize, backend.is_cpu)
    assert after == before
