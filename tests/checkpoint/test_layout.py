import math

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny_checkpoints import CASES, config_values, random_weights

from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.checkpoint.quantization_settings import QuantizationSettings, unquantized
from helium_mlx.model.helium import HeliumForCausalLM


@pytest.mark.parametrize("name", CASES)
def test_merging_and_splitting_are_inverse(name: str) -> None:
    config = HeliumConfig.from_dict(config_values(**CASES[name]))
    weights = random_weights(config)
    merged = layout.merge_projections(weights, config, unquantized)
    assert "model.layers.0.self_attn.qkv_proj.weight" in merged
    split = layout.split_projections(merged, config)
    assert split.keys() == weights.keys()
    assert all(mx.array_equal(split[key], weights[key]) for key in weights)


@pytest.mark.parametrize("name", CASES)
def test_the_names_and_shapes_on_disk_are_the_models(name: str) -> None:
    config = HeliumConfig.from_dict(config_values(**CASES[name]))
    parameters = dict(tree_flatten(HeliumForCausalLM(config).parameters()))
    on_disk = layout.split_projections(parameters, config)  # pyright: ignore[reportArgumentType]
    assert {key: array.shape for key, array in on_disk.items()} == dict(layout.tensor_shapes(config, unquantized))


def test_the_2b_preview_has_its_published_size() -> None:
    shapes = dict(layout.tensor_shapes(HeliumConfig(), unquantized))
    assert 2 * sum(math.prod(shape) for shape in shapes.values()) == pytest.approx(4.35e9, rel=0.01)
    assert len(shapes) == 24 * 9 + 3


def test_parts_that_are_packed_differently_stay_apart() -> None:
    config = HeliumConfig.from_dict(config_values())

    def settings(path: str) -> QuantizationSettings:
        return QuantizationSettings(32, 8 if path.endswith("v_proj") else 4)

    weights = {}
    for path, shape in layout.weight_shapes(config):
        packing = settings(path)
        packed = mx.quantize(mx.random.normal(shape), packing.group_size, packing.bits)
        weights |= {
            f"{path}.{suffix}": array for suffix, array in zip(("weight", "scales", "biases"), packed, strict=True)
        }
    merged = layout.merge_projections(weights, config, settings)
    assert "model.layers.0.self_attn.v_proj.weight" in merged
    assert "model.layers.0.self_attn.qkv_proj.weight" not in merged
    assert "model.layers.0.mlp.gate_up_proj.scales" in merged
    parameters = dict(tree_flatten(HeliumForCausalLM(config, settings).parameters()))
    assert {k: v.shape for k, v in parameters.items() if "norm" not in k} == {  # pyright: ignore
        key: array.shape for key, array in merged.items()
    }
