"""What a conversion is asked for: checked for sense before any work, and turned into settings for each module."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, cast, get_args

from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.checkpoint import Checkpoint
from helium_mlx.checkpoint.config import DTYPES
from helium_mlx.checkpoint.quantization_settings import (
    DEFAULT_BITS,
    DEFAULT_GROUP_SIZE,
    MODES,
    ModuleSettings,
    QuantizationSettings,
    require_divisible,
    unquantized,
)
from helium_mlx.checkpoint.weight_files import parse_size
from helium_mlx.errors import CheckpointError, ConfigError, QuantizationError
from helium_mlx.quantization.recipes import RECIPES, recipe_settings
from helium_mlx.quantization.rounding import ROUNDINGS, Rounding

Target = Literal["mlx", "hf"]
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True)
class ConversionOptions:
    """The options of `conversion.convert` that shape its result; see there.

    Raises QuantizationError, ConfigError, CheckpointError or ArgumentError, one line, for those that exclude each other
    or that there are not.
    """

    quantize: bool = False
    q_bits: int | None = None
    q_group_size: int | None = None
    q_mode: str | None = None
    recipe: str | None = None
    dequantize: bool = False
    dtype: str | None = None
    to: str = "mlx"
    max_shard_size: int | str | None = None
    rounding: str = "nearest"
    target_bpw: float | None = None
    calibration_text: str | None = None

    def __post_init__(self) -> None:
        if self.to not in TARGETS:
            raise CheckpointError(f"to is {self.to!r}; known are {', '.join(TARGETS)}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}; known are {', '.join(DTYPES)}")
        if self.max_shard_size is not None:
            parse_size(self.max_shard_size)
        if self.recipe is not None and self.recipe not in RECIPES:
            raise QuantizationError(f"recipe is {self.recipe!r}; known are {', '.join(RECIPES)}")
        if self.rounding not in ROUNDINGS:
            raise QuantizationError(f"rounding is {self.rounding!r}; known are {', '.join(ROUNDINGS)}")
        if self.is_quantizing:
            self._require_consistent()
        else:
            given = [name for name in ("q_bits", "q_group_size", "q_mode") if getattr(self, name) is not None]
            given += ["rounding"] if self.rounding != "nearest" else []
            if given:
                raise QuantizationError(
                    f"{given[0]} is given, but the checkpoint is not to be quantized; add quantize=True"
                )

    @property
    def max_shard_bytes(self) -> int | None:
        """The size at which weight files are cut; None is the usual one."""
        return None if self.max_shard_size is None else parse_size(self.max_shard_size)

    @property
    def is_quantizing(self) -> bool:
        """Whether the result is to be quantized; a recipe or a target alone says so too."""
        return self.quantize or self.recipe is not None or self.target_bpw is not None

    @property
    def rounding_kind(self) -> Rounding:
        """How weights are rounded."""
        return cast(Rounding, self.rounding)

    @property
    def is_calibrated(self) -> bool:
        """Whether the model is run over calibration text."""
        return self.rounding != "nearest" or self.target_bpw is not None

    def given(self) -> dict[str, object]:
        """Return the options that were given, for the record."""
        return {name: value for name, value in asdict(self).items() if value not in (None, False, "nearest")}

    def settings_for(self, source: Checkpoint) -> ModuleSettings:
        """Return how each module of the result is packed.

        Raises QuantizationError where the source's own quantization is in the way, or groups do not fit its matrices.
        """
        if self.is_quantizing and source.is_quantized:
            raise QuantizationError(
                f"{source.directory} is quantized already, and rounding twice costs quality; "
                "convert the full-precision checkpoint that it was made from"
            )
        if self.dequantize and not source.is_quantized:
            raise QuantizationError(
                f"{source.directory} is not quantized, so there is nothing to dequantize; drop dequantize=True"
            )
        if not self.is_quantizing:
            if source.is_quantized and not self.dequantize and self.to == "mlx":
                raise QuantizationError(
                    f"{source.directory} is quantized already, and in MLX's format; undo that with dequantize=True, or "
                    "convert the full-precision checkpoint that it was made from"
                )
            return unquantized
        if self.is_calibrated and source.architecture != "ForCausalLM":
            raise QuantizationError(
                f"{source.directory} holds a {source.architecture}, and calibration needs the logits of a causal LM; "
                "quantize it with rounding nearest and bits of your choice"
            )
        shapes = dict(layout.weight_shapes(source.config, source.architecture))
        settings = self._settings(source, shapes)
        require_divisible(((path, columns) for path, (_, columns) in shapes.items()), settings)
        return settings

    def _settings(self, source: Checkpoint, shapes: Mapping[str, tuple[int, int]]) -> ModuleSettings:
        if self.recipe is not None:
            group_size = DEFAULT_GROUP_SIZE["affine"] if self.q_group_size is None else self.q_group_size
            by_recipe = recipe_settings(self.recipe, source.config, group_size=group_size)
            return {path: by_recipe(path) for path in shapes}.get
        return dict.fromkeys(shapes, self._uniform()).get

    def _uniform(self) -> QuantizationSettings:
        if self.target_bpw is not None:
            # Only where the search begins; the smallest groups fit wherever any do.
            return QuantizationSettings(MODES["affine"][1][0], DEFAULT_BITS["affine"])
        mode = "affine" if self.q_mode is None else self.q_mode
        if mode not in MODES:
            raise QuantizationError(f"q_mode is {mode!r}; MLX has {', '.join(MODES)}")
        return QuantizationSettings(
            group_size=DEFAULT_GROUP_SIZE[mode] if self.q_group_size is None else self.q_group_size,
            bits=DEFAULT_BITS[mode] if self.q_bits is None else self.q_bits,
            mode=mode,
        )

    def _require_consistent(self) -> None:
        if self.dequantize:
            asked = "quantize=True" if self.quantize else "recipe" if self.recipe is not None else "target_bpw"
            raise QuantizationError(f"{asked} quantizes, and dequantize=True undoes that; keep one")
        if self.to == "hf":
            raise QuantizationError("transformers cannot read MLX's quantization; do not quantize, or write to mlx")
        if self.target_bpw is not None and not 0 < self.target_bpw < math.inf:
            raise QuantizationError(f"target_bpw is {self.target_bpw}; give bits per weight, such as 3.5")
        for name in ("recipe", "q_bits", "q_group_size", "q_mode") if self.target_bpw is not None else ():
            if getattr(self, name) is not None:
                raise QuantizationError(f"{name} and target_bpw are both given, but the target chooses that; keep one")
        if self.rounding != "nearest" and self.q_mode not in (None, "affine"):
            raise QuantizationError(
                f"rounding {self.rounding} is for mode affine, whose groups have scales and biases to fit; "
                f"{self.q_mode} has nearest only"
            )
        if self.calibration_text is not None and not self.is_calibrated:
            raise QuantizationError(
                "calibration_text is given, but rounding nearest has no use for it; add rounding gptq or fitted, or "
                "target_bpw"
            )
        if self.recipe is None:
            self._uniform()
        elif self.q_bits is not None or self.q_mode is not None:
            name = "q_bits" if self.q_bits is not None else "q_mode"
            raise QuantizationError(f"{name} and recipe are both given, but a recipe says that itself; keep one")
