"""Prints what each precision costs for the published shapes, as Markdown: `python examples/precision_table.py`.

Computed from the shapes of all tensors; no checkpoint is read. Bits per weight and GB on disk count every tensor, also
scales and biases, with 16 bits for what is not quantized. GB in memory adds a key-value cache in bfloat16 to the
weights; what a computation needs in passing, and the program itself, come on top. A GB is 10^9 bytes.
"""

import argparse
import sys
from collections.abc import Iterator

from write_random_checkpoint import SHAPES

from helium_mlx import HeliumConfig
from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.quantization_settings import (
    DEFAULT_BITS,
    DEFAULT_GROUP_SIZE,
    ModuleSettings,
    QuantizationSettings,
    unquantized,
)
from helium_mlx.quantization.recipes import RECIPES, bits_per_weight, bytes_on_disk, recipe_settings

# what the table calls a model -> its key in SHAPES
MODELS = {"helium-1-preview-2b": "preview", "helium-1-2b": "1-2b"}

FLOATING_POINT_MODES = ("mxfp8", "mxfp4", "nvfp4")


def precisions(config: HeliumConfig) -> Iterator[tuple[str, ModuleSettings]]:
    """Yield the rows of the table: a name, and how each module is packed."""
    paths = [path for path, _ in layout.weight_shapes(config)]
    yield "bfloat16", unquantized
    for bits in (8, 6, 5, 4, 3, 2):
        yield f"{bits} bits", dict.fromkeys(paths, QuantizationSettings(64, bits)).get
    for mode in FLOATING_POINT_MODES:
        packing = QuantizationSettings(DEFAULT_GROUP_SIZE[mode], DEFAULT_BITS[mode], mode)
        yield f"`{mode}`", dict.fromkeys(paths, packing).get
    for name, recipe in RECIPES.items():
        yield f"`{name}`: {recipe.description}", recipe_settings(name, config)


def kv_cache_bytes(config: HeliumConfig) -> int:
    """Return what a token takes in a key-value cache in bfloat16."""
    return 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def figures(config: HeliumConfig, settings: ModuleSettings, tokens: int) -> tuple[float, float, float]:
    """Return bits per weight, GB on disk, and GB in memory with `tokens` tokens in the cache."""
    weights = bytes_on_disk(config, settings)
    memory = weights + tokens * kv_cache_bytes(config)
    return bits_per_weight(config, settings), weights / 1e9, memory / 1e9


def table(tokens: int) -> str:
    """Return the whole table, and a line that says what it counts."""
    configs = {model: HeliumConfig.from_dict(SHAPES[shape]) for model, shape in MODELS.items()}
    rows: dict[str, list[str]] = {}
    for config in configs.values():
        for name, settings in precisions(config):
            rows.setdefault(name, []).extend(f"{figure:.2f}" for figure in figures(config, settings, tokens))
    header = [name for model in configs for name in (f"{model}: bits per weight", "GB on disk", "GB in memory")]
    lines = [["", *header], ["--"] * (1 + len(header)), *([name, *values] for name, values in rows.items())]
    counted = f"In memory: the weights and a key-value cache of {tokens:,} tokens in bfloat16. A GB is 10^9 bytes."
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", counted])


def main(argv: list[str] | None = None) -> int:
    """Print the table and return an exit status."""
    parser = argparse.ArgumentParser(description="Print what each precision costs on disk and in memory.")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens in the cache (default: %(default)s)")
    print(table(parser.parse_args(argv).tokens))
    return 0


if __name__ == "__main__":
    sys.exit(main())
