"""Recipes: quantizations that give more bits to the matrices that matter most, and what a quantization costs.

Which those are is what llama.cpp found and mlx-lm took over: `v_proj` and `down_proj` of the first and last eighth of
the layers, and of every third in between. Embedding and head, which in Helium are separate and about an eighth of the
weights together, get at least 6 bits as well: there the recipes differ from mlx-lm's of the same names, which leave the
embedding at the low width. What they do not do: measure which matrices of a given model are sensitive.
"""

import math
from dataclasses import dataclass

from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.checkpoint.quantization_settings import (
    DEFAULT_GROUP_SIZE,
    ModuleSettings,
    QuantizationSettings,
    unquantized,
)
from helium_mlx.errors import QuantizationError
from helium_mlx.files.safetensors_header import BYTES_PER_VALUE

_LIFTED = ("self_attn.v_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Recipe:
    """Bits of most matrices, of those lifted above them, and of embedding and head."""

    low: int
    high: int
    ends: int

    @property
    def description(self) -> str:
        """One line for people."""
        lifted = "v_proj and down_proj of half the layers"
        if self.high == self.low:
            return f"{self.low} bits, {self.ends} in embedding and head"
        if self.high == self.ends:
            return f"{self.low} bits, {self.ends} in embedding, head, and {lifted}"
        return f"{self.low} bits, {self.high} in {lifted}, {self.ends} in embedding and head"


RECIPES = {
    "mixed_2_6": Recipe(2, 6, 6),
    "mixed_3_4": Recipe(3, 4, 6),
    "mixed_3_6": Recipe(3, 6, 6),
    "mixed_4_6": Recipe(4, 6, 6),
    "mixed_4_6_8": Recipe(4, 6, 8),
    "embed_8": Recipe(4, 4, 8),
}


def recipe_settings(
    name: str, config: HeliumConfig, *, group_size: int = DEFAULT_GROUP_SIZE["affine"]
) -> ModuleSettings:
    """Return what a recipe gives each matrix of a model, in groups of `group_size`.

    Raises QuantizationError for a name that is none, and for a group size that MLX does not have.
    """
    if name not in RECIPES:
        raise QuantizationError(f"recipe is {name!r}; known are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    low, high, ends = (QuantizationSettings(group_size, bits) for bits in (recipe.low, recipe.high, recipe.ends))
    lifted = {
        f"{layout.layer_prefix(index)}.{path}"
        for index in range(config.num_hidden_layers)
        if _is_lifted(index, config.num_hidden_layers)
        for path in _LIFTED
    }
    by_path = {path: low for path, _ in layout.weight_shapes(config)}
    by_path |= dict.fromkeys(lifted, high)
    by_path |= {path: ends for path in ("model.embed_tokens", "lm_head") if path in by_path}
    return by_path.get


def bits_per_weight(config: HeliumConfig, settings_of: ModuleSettings) -> float:
    """Return a causal LM's bits a weight on disk: scales and biases counted, 16 bits for what is not quantized."""
    weights = sum(math.prod(shape) for _, shape in layout.tensor_shapes(config, unquantized))
    return 8 * bytes_on_disk(config, settings_of) / weights


def bytes_on_disk(config: HeliumConfig, settings_of: ModuleSettings) -> int:
    """Return the bytes of a causal LM's tensors, with 16 bits for scales, biases and what is not quantized."""
    by_path = {path: settings_of(path) for path, _ in layout.weight_shapes(config)}
    total = 0
    for name, shape in layout.tensor_shapes(config, by_path.get):
        path, _, suffix = name.rpartition(".")
        settings = by_path.get(path)
        integers = None if settings is None else settings.integer_dtype(suffix)
        total += (2 if integers is None else BYTES_PER_VALUE[integers]) * math.prod(shape)
    return total


def _is_lifted(index: int, n_layers: int) -> bool:
    eighth = n_layers // 8
    return index < eighth or index >= 7 * n_layers // 8 or (index - eighth) % 3 == 2
