import mlx.core as mx
import pytest

from helium_mlx.errors import QuantizationError
from helium_mlx.quantization import MODES, QuantizationSettings, module_settings, require_divisible

COMBINATIONS = [
    (mode, bits, group_size)
    for mode, (all_bits, group_sizes) in MODES.items()
    for bits in all_bits
    for group_size in group_sizes
]


@pytest.mark.parametrize(("mode", "bits", "group_size"), COMBINATIONS)
def test_packed_shapes_are_mlxs(mode: str, bits: int, group_size: int) -> None:
    arrays = mx.quantize(mx.random.normal((5, 256)), group_size, bits, mode)
    shapes = QuantizationSettings(group_size, bits, mode).packed_shapes(5, 256)
    assert list(shapes.values()) == [array.shape for array in arrays]


@pytest.mark.parametrize(
    "values", [(64, 7, "affine"), (48, 4, "affine"), (64, 4, "mxfp4"), (64, 4, "gguf"), (64, "4", "affine")]
)
def test_settings_that_mlx_does_not_have_are_refused(values: tuple[int, int, str]) -> None:
    with pytest.raises(QuantizationError, match=r"allows|MLX has"):
        QuantizationSettings(*values)


def test_a_module_is_quantized_where_there_are_scales() -> None:
    settings = module_settings({"group_size": 64, "bits": 4}, ["a.weight", "a.scales", "b.weight"])
    assert settings("a") == QuantizationSettings(64, 4)
    assert settings("b") is None


def test_an_entry_for_a_module_wins() -> None:
    quantization: dict[str, object] = {"group_size": 64, "bits": 4, "a": {"group_size": 32, "bits": 8}}
    assert module_settings(quantization, ["a.scales"])("a") == QuantizationSettings(32, 8)


def test_null_group_sizes_of_mlx_lms_recipes_are_read_as_the_default() -> None:
    quantization: dict[str, object] = {"group_size": 64, "bits": 4, "a": {"group_size": None, "bits": 6}}
    assert module_settings(quantization, ["a.scales"])("a") == QuantizationSettings(64, 6)


def test_scales_without_settings_are_refused() -> None:
    with pytest.raises(QuantizationError, match=r"a\.scales"):
        module_settings(None, ["a.scales"])


def test_a_group_size_that_does_not_divide_names_those_that_do() -> None:
    with pytest.raises(QuantizationError, match=r"128 .* 192 columns of b; use 32 or 64"):
        require_divisible([("a", 128), ("b", 192)], 128)
