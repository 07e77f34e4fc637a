"""The exported step as a GPU would run it: no more kernels than the Python loop's."""

from pathlib import Path

import mlx.core as mx
import pytest

from helium_mlx.bundle.exporting import model_facts
from helium_mlx.bundle.functions import BundleFunction, FunctionShape
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.diagnostics.gpu_kernels import PRECISIONS, as_on_gpu, kernels, write_small_model
from helium_mlx.diagnostics.graph_size import Operations, operations
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.loading import load_model

LAYERS = 3
SHAPE = FunctionShape(1, 512, 256)


def of_the_loop(model: HeliumForCausalLM) -> Operations:
    cache = make_cache(model)
    mx.eval(model.logits_after(mx.array([3]), cache))
    return operations(model.logits_after(mx.array([4]), cache))


def of_the_function(model: HeliumForCausalLM, path: Path) -> Operations:
    function, specs = BundleFunction(model, SHAPE), model_facts(model).inputs(SHAPE)
    inputs = [spec.zeros() for spec in specs]
    function.write(path, inputs)
    imported = mx.import_function(str(path))
    assert callable(imported)
    # What is there after a first step is no part of the next: inputs, and constants in the file.
    mx.eval(inputs, imported(*inputs, *function.weights.values()))
    return operations(*mx.compile(imported)(*inputs, *function.weights.values()))


@pytest.mark.parametrize("heads", [{}, {"num_key_value_heads": 1}])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bundles_step_takes_no_more_kernels_than_the_loop(tmp_path: Path, precision: str, heads: dict) -> None:
    config = HeliumConfig.from_dict({"num_hidden_layers": LAYERS, "head_dim": 128, **heads})
    write_small_model(tmp_path / "small", config, PRECISIONS[precision])
    with as_on_gpu():
        model = load_model(tmp_path / "small")
        loop, function = of_the_loop(model), of_the_function(model, tmp_path / "decode.mlxfn")
    assert kernels(function) <= kernels(loop)
    # On Metal it is two: the place is computed by a kernel of its own.
    assert "DynamicSliceUpdate" not in function
