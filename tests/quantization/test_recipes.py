import sys

import mlx.core as mx
import mlx.nn as nn
import pytest
from processes import EXAMPLES
from tiny_checkpoints import BASE, config_values

from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.checkpoint.quantization_settings import (
    DEFAULT_BITS,
    DEFAULT_GROUP_SIZE,
    MODES,
    PARTS,
    ModuleSettings,
    QuantizationSettings,
    config_entry,
    module_settings,
    unquantized,
)
from helium_mlx.convert import build_parser
from helium_mlx.errors import QuantizationError
from helium_mlx.quantization.recipes import RECIPES, bits_per_weight, bytes_on_disk, recipe_settings

sys.path.insert(0, str(EXAMPLES))

import precision_table
from write_random_checkpoint import SHAPES

PREVIEW, SMALL = (HeliumConfig.from_dict(SHAPES[shape]) for shape in ("preview", "1-2b"))
PUBLISHED = pytest.mark.parametrize("config", [PREVIEW, SMALL], ids=["preview", "1-2b"])
ENDS = ("model.embed_tokens", "lm_head")


def paths(config: HeliumConfig) -> list[str]:
    return [path for path, _ in layout.weight_shapes(config)]


def uniform(config: HeliumConfig, bits: int, group_size: int = 64, mode: str = "affine") -> ModuleSettings:
    return dict.fromkeys(paths(config), QuantizationSettings(group_size, bits, mode)).get


def bits_of(settings: ModuleSettings, path: str) -> int:
    chosen = settings(path)
    assert chosen is not None
    return chosen.bits


@PUBLISHED
@pytest.mark.parametrize(
    "name", [name for name in RECIPES if name in ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")]
)
def test_inside_of_the_layers_a_recipe_is_mlx_lms_of_that_name(config: HeliumConfig, name: str) -> None:
    from mlx_lm.convert import mixed_quant_predicate_builder

    class Skeleton(nn.Module):
        """What mlx-lm looks at: how many layers there are, and at which place of a path their number stands."""

        def __init__(self) -> None:
            self.layers = [nn.Module() for _ in range(config.num_hidden_layers)]

        def named_modules(self) -> list[tuple[str, nn.Module]]:
            return [("model.layers.0.mlp.down_proj", nn.Module())]

    theirs, ours = mixed_quant_predicate_builder(name, Skeleton()), recipe_settings(name, config)
    for path in paths(config):
        if path not in ENDS:
            chosen = ours(path)
            assert chosen is not None
            assert chosen.to_dict() == theirs(path, nn.Module()), path  # pyright: ignore[reportCallIssue]


def test_mlx_lms_recipes_are_all_here() -> None:
    from mlx_lm.convert import QUANT_RECIPES

    assert set(QUANT_RECIPES) <= set(RECIPES)


@PUBLISHED
@pytest.mark.parametrize("name", RECIPES)
def test_embedding_and_head_have_6_bits_or_more(config: HeliumConfig, name: str) -> None:
    settings = recipe_settings(name, config)
    assert {bits_of(settings, path) for path in ENDS} == {8 if name.endswith("_8") else 6}


def test_names_say_which_bits_there_are() -> None:
    found = {name: {bits_of(recipe_settings(name, PREVIEW), path) for path in paths(PREVIEW)} for name in RECIPES}
    assert found == {
        "mixed_2_6": {2, 6},
        "mixed_3_4": {3, 4, 6},
        "mixed_3_6": {3, 6},
        "mixed_4_6": {4, 6},
        "mixed_4_6_8": {4, 6, 8},
        "embed_8": {4, 8},
    }


@PUBLISHED
@pytest.mark.parametrize("name", RECIPES)
def test_a_description_says_which_bits_there_are(config: HeliumConfig, name: str) -> None:
    settings = recipe_settings(name, config)
    described = {int(word) for word in RECIPES[name].description.replace(",", "").split() if word.isdigit()}
    assert described == {bits_of(settings, path) for path in paths(config)}
    assert "\n" not in RECIPES[name].description


@PUBLISHED
def test_half_of_the_layers_of_the_published_models_are_lifted(config: HeliumConfig) -> None:
    settings = recipe_settings("mixed_4_6", config)
    for part in ("self_attn.v_proj", "mlp.down_proj"):
        bits = [bits_of(settings, f"model.layers.{index}.{part}") for index in range(config.num_hidden_layers)]
        assert bits.count(6) == bits.count(4) == config.num_hidden_layers // 2
        assert bits[0] == bits[-1] == 6


def test_a_recipe_takes_another_group_size() -> None:
    for group_size in (32, 64, 128):
        settings = recipe_settings("mixed_4_6_8", PREVIEW, group_size=group_size)
        packings = [chosen for path in paths(PREVIEW) if (chosen := settings(path)) is not None]
        assert len(packings) == len(paths(PREVIEW))
        assert {chosen.group_size for chosen in packings} == {group_size}
    with pytest.raises(QuantizationError, match="allows 32, 64, 128"):
        recipe_settings("mixed_4_6", PREVIEW, group_size=16)


@pytest.mark.parametrize("tied", [False, True])
def test_a_recipe_names_what_the_model_has_and_nothing_else(tied: bool) -> None:
    config = HeliumConfig.from_dict({**BASE, "tie_word_embeddings": tied})
    settings = recipe_settings("mixed_3_6", config)
    assert all(settings(path) for path in paths(config))
    assert (settings("lm_head") is None) == tied
    assert settings("model.norm") is None
    assert settings("model.layers.9.mlp.down_proj") is None


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(QuantizationError) as raised:
        recipe_settings("mixed_9", PREVIEW)
    assert str(raised.value) == f"recipe is 'mixed_9'; known are {', '.join(RECIPES)}"


@pytest.mark.parametrize("name", RECIPES)
def test_the_config_of_a_recipe_reads_back_as_it(name: str) -> None:
    settings = recipe_settings(name, SMALL)
    names = [tensor for tensor, _ in layout.tensor_shapes(SMALL, settings)]
    read = module_settings(config_entry(settings, paths(SMALL)), names)
    assert {path: read(path) for path in paths(SMALL)} == {path: settings(path) for path in paths(SMALL)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tied", [False, True])
def test_bytes_are_those_of_arrays_that_mlx_packs(mode: str, tied: bool) -> None:
    values = config_values(intermediate_size=128, attention_bias=True, tie_word_embeddings=tied)
    config, group_size, bits = HeliumConfig.from_dict(values), DEFAULT_GROUP_SIZE[mode], DEFAULT_BITS[mode]
    expected = 0
    for name, shape in layout.tensor_shapes(config, unquantized):
        tensor = mx.ones(shape, mx.bfloat16)
        is_packed = name.rpartition(".")[0] in paths(config) and name.endswith(".weight")
        arrays = mx.quantize(tensor, group_size, bits, mode) if is_packed else [tensor]
        assert len(arrays) <= len(PARTS)
        expected += sum(array.nbytes for array in arrays)
    assert bytes_on_disk(config, uniform(config, bits, group_size, mode)) == expected


def test_settings_that_answer_for_any_path_count_the_same() -> None:
    settings = uniform(PREVIEW, 4)
    assert bytes_on_disk(PREVIEW, lambda path: QuantizationSettings(64, 4)) == bytes_on_disk(PREVIEW, settings)


def test_the_published_sizes() -> None:
    assert bytes_on_disk(PREVIEW, unquantized) / 1e9 == pytest.approx(4.35, abs=0.005)
    assert bytes_on_disk(SMALL, unquantized) / 1e9 == pytest.approx(4.05, abs=0.005)
    assert bytes_on_disk(PREVIEW, uniform(PREVIEW, 4)) / 1e9 == pytest.approx(1.22, abs=0.005)
    assert bits_per_weight(PREVIEW, unquantized) == 16
    assert bits_per_weight(PREVIEW, uniform(PREVIEW, 4)) == pytest.approx(4.5, abs=0.001)
    assert bits_per_weight(PREVIEW, uniform(PREVIEW, 8, 32, "mxfp8")) == pytest.approx(8.25, abs=0.001)


def test_the_table_has_the_published_figures() -> None:
    assert precision_table.kv_cache_bytes(PREVIEW) == 245_760
    assert precision_table.kv_cache_bytes(SMALL) == 114_688
    lines = precision_table.table(4096).splitlines()
    rows = {cells[1]: cells[2:-1] for line in lines if (cells := [cell.strip() for cell in line.split("|")])[1:]}
    assert rows["bfloat16"] == ["16.00", "4.35", "5.35", "16.00", "4.05", "4.52"]
    assert rows["4 bits"] == ["4.50", "1.22", "2.23", "4.50", "1.14", "1.61"]
    assert {name.partition(":")[0] for name in rows} >= {f"`{name}`" for name in (*RECIPES, "mxfp8", "mxfp4", "nvfp4")}
    assert {len(cells) for cells in rows.values()} == {6}


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert precision_table.main(["--tokens", "0"]) == 0
    assert "| bfloat16 | 16.00 | 4.35 | 4.35 | 16.00 | 4.05 | 4.05 |" in capsys.readouterr().out


def test_the_commands_help_lists_what_each_recipe_does_and_takes() -> None:
    preview, lines = HeliumConfig(), build_parser().format_help().splitlines()
    first = lines.index("recipes, as fast as -q, and what Helium-1 preview takes (2.2 billion weights):")
    listed = lines[first + 1 : lines.index("examples:") - 1]
    assert max(map(len, lines[first : lines.index("examples:")])) <= 80
    assert len([line for line in listed if line.startswith("  ") and line[2] != " "]) == len(RECIPES)
    for name, recipe in RECIPES.items():
        settings = recipe_settings(name, preview)
        bits, size = bits_per_weight(preview, settings), bytes_on_disk(preview, settings) / 1e9
        at = listed.index(f"  {name:<12} {bits:.2f} bits a weight, {size:.2f} GB")
        assert " ".join(" ".join(listed[at + 1 : at + 3]).split()).startswith(recipe.description)
