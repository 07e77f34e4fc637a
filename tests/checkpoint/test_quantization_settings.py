import json

import mlx.core as mx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from helium_mlx.checkpoint.quantization_settings import (
    MODES,
    QuantizationSettings,
    config_entry,
    module_settings,
    require_divisible,
)
from helium_mlx.errors import QuantizationError

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


def test_the_config_entry_has_the_most_common_settings_on_top_and_the_others_by_path() -> None:
    most, other = QuantizationSettings(64, 4), QuantizationSettings(32, 8, "mxfp8")
    settings: dict[str, QuantizationSettings | None] = {"a": other, "b": most, "c": None, "d": most}
    assert config_entry(settings.get, settings) == {
        "group_size": 64,
        "bits": 4,
        "mode": "affine",
        "a": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
        "c": False,
    }


PACKINGS = [QuantizationSettings(group_size, bits, mode) for mode, bits, group_size in COMBINATIONS]


@given(st.dictionaries(st.sampled_from("abcdefg"), st.sampled_from([None, *PACKINGS[:4], *PACKINGS[-3:]]), min_size=1))
def test_the_config_entry_reads_back_as_the_settings(settings: dict[str, QuantizationSettings | None]) -> None:
    assume(any(settings.values()))
    entry = config_entry(settings.get, settings)
    names = [
        f"{path}.{suffix}" for path, s in settings.items() for suffix in (("weight", "scales") if s else ("weight",))
    ]
    read = module_settings(json.loads(json.dumps(entry)), names)
    assert {path: read(path) for path in settings} == settings
    assert all(path in settings for path in entry.keys() - {"group_size", "bits", "mode"})


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: f"{packing.mode}-{packing.bits}-{packing.group_size}")
def test_what_passes_can_be_packed_and_what_mlx_refuses_is_refused(packing: QuantizationSettings) -> None:
    for columns in range(8, 300, 8):
        refused = None
        try:
            require_divisible([("a", columns)], lambda path: packing)
        except QuantizationError as error:
            refused = str(error)
        for rows in (1, 2, 5):
            weight = mx.ones((rows, columns))
            if refused is None:
                mx.eval(mx.quantize(weight, packing.group_size, packing.bits, packing.mode))
            elif columns % packing.group_size:
                with pytest.raises(ValueError, match=r"\[quantize\]"):
                    mx.quantize(weight, packing.group_size, packing.bits, packing.mode)
            else:
                # Odd groups of nvfp4: MLX refuses some numbers of rows, so all are refused here.
                assert packing.mode == "nvfp4"


AFFINE_128, AFFINE_64 = QuantizationSettings(128, 4), QuantizationSettings(64, 6)


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (
            {"a": 128, "b": 192},
            {"a": AFFINE_128, "b": AFFINE_128},
            "group size 128 does not divide the 192 columns of b; use 32 or 64, or mode mxfp4 or mxfp8 or nvfp4",
        ),
        (
            {"a": 96, "b": 192},
            {"a": AFFINE_64, "b": AFFINE_64},
            "group size 64 does not divide the 96 columns of a; use 32, or mode mxfp4 or mxfp8 or nvfp4",
        ),
        (
            {"a": 128, "b": 192},
            {"a": AFFINE_128, "b": AFFINE_64},
            None,
        ),
        ({"a": 128, "b": 40}, {"a": AFFINE_128, "b": None}, None),
        (
            {"a": 128, "b": 40},
            {"a": AFFINE_128, "b": AFFINE_64},
            "group size 64 does not divide the 40 columns of b; no group size of MLX fits this checkpoint",
        ),
        (
            {"a": 48},
            {"a": QuantizationSettings(32, 4, "mxfp4")},
            "mxfp4 has groups of 32 only, and 32 does not divide the 48 columns of a; "
            "no group size of MLX fits this checkpoint",
        ),
        (
            {"a": 48},
            {"a": QuantizationSettings(16, 4, "nvfp4")},
            "nvfp4 has groups of 16 only, packed in pairs, and 32 does not divide the 48 columns of a; "
            "no group size of MLX fits this checkpoint",
        ),
    ],
)
def test_columns_that_do_not_fit_are_named_with_what_would_do(
    columns: dict[str, int], settings: dict[str, QuantizationSettings | None], message: str | None
) -> None:
    if message is None:
        require_divisible(columns.items(), settings.get)
        return
    with pytest.raises(QuantizationError) as raised:
        require_divisible(columns.items(), settings.get)
    assert str(raised.value) == message
