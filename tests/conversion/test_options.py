from pathlib import Path

import pytest
from tiny_checkpoints import write_checkpoint

import helium_mlx
from helium_mlx.checkpoint.checkpoint import open_checkpoint
from helium_mlx.checkpoint.quantization_settings import QuantizationSettings
from helium_mlx.conversion.options import ConversionOptions
from helium_mlx.errors import ArgumentError, CheckpointError, ConfigError, HeliumError, QuantizationError
from helium_mlx.files.hub import DEMO_DIRECTORY

WRONG: list[tuple[dict[str, object], type[HeliumError], str]] = [
    ({"q_bits": 4}, QuantizationError, "q_bits is given.*add quantize=True"),
    ({"q_mode": "mxfp4"}, QuantizationError, "q_mode is given.*add quantize=True"),
    (
        {"quantize": True, "dequantize": True},
        QuantizationError,
        "quantize=True quantizes, and dequantize=True undoes that",
    ),
    ({"quantize": True, "to": "hf"}, QuantizationError, "transformers cannot read"),
    ({"recipe": "mixed_4_6", "to": "hf"}, QuantizationError, "transformers cannot read"),
    ({"recipe": "best"}, QuantizationError, "recipe is 'best'; known are .*mixed_4_6"),
    ({"recipe": "mixed_4_6", "q_bits": 4}, QuantizationError, "q_bits and recipe are both given"),
    ({"recipe": "mixed_4_6", "q_mode": "affine"}, QuantizationError, "q_mode and recipe are both given"),
    ({"quantize": True, "q_mode": "int4"}, QuantizationError, "q_mode is 'int4'; MLX has affine"),
    ({"quantize": True, "q_mode": "mxfp4", "q_bits": 8}, QuantizationError, "mode 'mxfp4' allows 4"),
    ({"quantize": True, "q_mode": "nvfp4", "q_group_size": 32}, QuantizationError, "mode 'nvfp4' allows 16"),
    ({"quantize": True, "q_bits": 7}, QuantizationError, "allows 2, 3, 4, 5, 6, 8"),
    ({"to": "gguf"}, CheckpointError, "to is 'gguf'; known are mlx, hf"),
    ({"dtype": "float64"}, ConfigError, "dtype is 'float64'"),
    ({"max_shard_size": 0}, ArgumentError, "max_shard_size is 0; expected a number of bytes, or text such as '5GB'"),
    ({"max_shard_size": "much"}, ArgumentError, "max_shard_size is 'much'"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_options_that_make_no_sense_are_refused(
    options: dict[str, object], error: type[HeliumError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        ConversionOptions(**options)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, QuantizationSettings(64, 4, "affine")),
        ({"q_bits": 8, "q_group_size": 32}, QuantizationSettings(32, 8, "affine")),
        ({"q_mode": "mxfp4"}, QuantizationSettings(32, 4, "mxfp4")),
        ({"q_mode": "mxfp8"}, QuantizationSettings(32, 8, "mxfp8")),
        ({"q_mode": "nvfp4"}, QuantizationSettings(16, 4, "nvfp4")),
    ],
)
def test_every_matrix_gets_the_settings(options: dict[str, object], expected: QuantizationSettings) -> None:
    settings = ConversionOptions(quantize=True, **options).settings_for(open_checkpoint(DEMO_DIRECTORY))  # pyright: ignore
    for path in ("model.embed_tokens", "model.layers.0.self_attn.q_proj", "model.layers.5.mlp.down_proj", "lm_head"):
        assert settings(path) == expected
    assert settings("model.norm") is None


def test_a_recipe_gives_each_matrix_its_own() -> None:
    settings = ConversionOptions(recipe="mixed_4_6").settings_for(open_checkpoint(DEMO_DIRECTORY))
    found = [settings(f"model.layers.5.{path}") for path in ("self_attn.q_proj", "mlp.down_proj")]
    assert [packing.bits for packing in found if packing] == [4, 6]


def test_a_source_that_is_quantized_is_dequantized_and_nothing_else(tmp_path: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True, verify=False)
    source = open_checkpoint(tmp_path / "x")
    for options in (ConversionOptions(), ConversionOptions(quantize=True), ConversionOptions(recipe="mixed_4_6")):
        with pytest.raises(QuantizationError, match="is quantized already"):
            options.settings_for(source)
    for options in (ConversionOptions(dequantize=True), ConversionOptions(to="hf")):
        assert options.settings_for(source)("lm_head") is None


def test_there_must_be_something_to_dequantize(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="not quantized, so there is nothing to dequantize"):
        ConversionOptions(dequantize=True).settings_for(open_checkpoint(write_checkpoint(tmp_path)))
