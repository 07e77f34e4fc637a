"""Quantization settings: what MLX has, what a `config.json` says of it, and how large the quantized tensors are.

A quantized module holds `weight` (codes packed into uint32), `scales`, and for mode `affine` `biases`; its
`config.json` entry is `{"group_size": int, "bits": int, "mode": str}`, under the module's path where it differs from
the general one. A module is quantized where the checkpoint has `<path>.scales`, whatever the config says.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from typing import cast

from helium_mlx.errors import QuantizationError, one_line, shown

# mode -> (bits, group sizes), from the documentation of mlx.core.quantize.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((2, 3, 4, 5, 6, 8), (32, 64, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}

# What a quantized weight consists of, in the order in which `mx.quantize` returns it.
PARTS = ("weight", "scales", "biases")

# On the CPU, mx.quantize packs 32 codes at a time: whether odd groups of nvfp4 fit depends on the number of rows.
_CODES_AT_ONCE = 32
DEFAULT_BITS = {"affine": 4, "mxfp4": 4, "mxfp8": 8, "nvfp4": 4}
DEFAULT_GROUP_SIZE = {"affine": 64, "mxfp4": 32, "mxfp8": 32, "nvfp4": 16}


@dataclass(frozen=True)
class QuantizationSettings:
    """How one module's weight is packed: `group_size` columns share a scale, `bits` a code, `mode` the format."""

    group_size: int
    bits: int
    mode: str = "affine"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise QuantizationError(f"quantization mode is {shown(self.mode)}; MLX has {', '.join(MODES)}")
        bits, group_sizes = MODES[self.mode]
        for name, value, allowed in (("bits", self.bits, bits), ("group_size", self.group_size, group_sizes)):
            if isinstance(value, bool) or value not in allowed:
                choices = ", ".join(map(str, allowed))
                raise QuantizationError(f"quantization {name} is {shown(value)}; mode {self.mode!r} allows {choices}")

    @property
    def has_biases(self) -> bool:
        """Whether a group has a bias beside its scale."""
        return self.mode == "affine"

    @property
    def columns_multiple(self) -> int:
        """What the columns of a weight must be a multiple of, for whole groups that fill whole blocks of codes."""
        return max(self.group_size, _CODES_AT_ONCE)

    def integer_dtype(self, suffix: str) -> str | None:
        """Return safetensors' name of the dtype of a part, by its suffix; None for one that is floating-point."""
        if suffix == "weight":
            return "U32"
        return "U8" if suffix == "scales" and not self.has_biases else None

    def to_dict(self) -> dict[str, object]:
        """Return the entry as it stands in `config.json`."""
        return asdict(self)

    def packed_shapes(self, rows: int, columns: int) -> dict[str, tuple[int, int]]:
        """Return the shapes on disk of a (rows, columns) weight, keyed by tensor suffix."""
        groups = (rows, columns // self.group_size)
        shapes = {"weight": (rows, columns * self.bits // 32), "scales": groups}
        return shapes | ({"biases": groups} if self.has_biases else {})


ModuleSettings = Callable[[str], QuantizationSettings | None]
"""Says for a module's path how its weight is packed; None where it is not quantized."""


def unquantized(path: str) -> None:
    """The `ModuleSettings` of a checkpoint at full precision."""
    return None


def module_settings(quantization: dict[str, object] | None, tensor_names: Collection[str]) -> ModuleSettings:
    """Read a config's `quantization` object for a checkpoint that holds `tensor_names`.

    Raises QuantizationError for settings that MLX does not have, and for scales that no setting explains.
    """
    quantized = {name.removesuffix(".scales") for name in tensor_names if name.endswith(".scales")}
    if not quantized:
        return unquantized
    if quantization is None:
        raise QuantizationError(
            f"{one_line(min(quantized), 200)}.scales is in the checkpoint, but config.json has no `quantization`; "
            "convert it again"
        )
    settings = {path: _settings_from(quantization, path) for path in quantized}
    return settings.get


def _settings_from(quantization: dict[str, object], path: str) -> QuantizationSettings:
    entry = quantization.get(path)
    values = entry if isinstance(entry, dict) else quantization
    mode = values.get("mode", "affine")
    if not isinstance(mode, str) or mode not in MODES:
        raise QuantizationError(
            f"quantization mode of {one_line(path, 200)} is {shown(mode)}; MLX has {', '.join(MODES)}"
        )
    # mlx-lm's mixed recipes write null for a value that is the mode's default.
    group_size, bits = values.get("group_size"), values.get("bits")
    return QuantizationSettings(
        group_size=DEFAULT_GROUP_SIZE[mode] if group_size is None else cast(int, group_size),
        bits=DEFAULT_BITS[mode] if bits is None else cast(int, bits),
        mode=mode,
    )


def config_entry(settings: ModuleSettings, paths: Iterable[str]) -> dict[str, object]:
    """Return the `quantization` object of a `config.json`: the inverse of `module_settings`.

    The settings of most modules stand at the top, those of others under their path, and `false` under the path of one
    that is not quantized. Integers are explicit everywhere: Swift loaders cannot decode null. At least one of `paths`
    must be quantized.
    """
    by_path = {path: settings(path) for path in paths}
    quantized = [own for own in by_path.values() if own is not None]
    assert quantized, "no module is quantized, so there is nothing to say of it"
    general = max(dict.fromkeys(quantized), key=quantized.count)
    special = {path: own.to_dict() if own is not None else False for path, own in by_path.items() if own != general}
    return general.to_dict() | special


def require_divisible(weights: Iterable[tuple[str, int]], settings: ModuleSettings) -> None:
    """Raise QuantizationError, naming what would do, if `mx.quantize` cannot pack the columns of a weight.

    `weights` gives module paths with their number of columns.
    """
    packed = [(path, columns, own) for path, columns in weights if (own := settings(path)) is not None]
    misfit = next((weight for weight in packed if weight[1] % weight[2].columns_multiple), None)
    if misfit is None:
        return
    path, columns, own = misfit
    sizes = [size for size in MODES["affine"][1] if all(columns % size == 0 for _, columns, _ in packed)]
    advice = "no group size of MLX fits this checkpoint"
    if sizes:
        # The other modes need what the smallest of these needs.
        advice = (
            f"use {' or '.join(map(str, sizes))}, or mode {' or '.join(mode for mode in MODES if mode != 'affine')}"
        )
    problem = f"group size {own.group_size} does not divide the {columns} columns of {path}"
    if own.mode != "affine":
        pairs = ", packed in pairs" if own.columns_multiple > own.group_size else ""
        problem = (
            f"{own.mode} has groups of {own.group_size} only{pairs}, and {own.columns_multiple} does not "
            f"divide the {columns} columns of {path}"
        )
    raise QuantizationError(f"{problem}; {advice}")
