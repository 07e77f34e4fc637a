"""The `rope_parameters` of a config: known types, their keys and ranges. `model/rope.py` computes with them."""

import sys
from collections.abc import Mapping
from typing import cast

from helium_mlx.errors import ConfigError

Json = Mapping[str, object]
_OPTIONAL_YARN = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")

# rope_type -> (required keys, optional keys), `rope_type` and `rope_theta` aside.
ROPE_TYPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "yarn": (("factor", "original_max_position_embeddings"), _OPTIONAL_YARN),
    "longrope": (
        ("short_factor", "long_factor", "original_max_position_embeddings"),
        ("factor", "attention_factor"),
    ),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
}


def validate_rope_parameters(parameters: Json, head_dim: int) -> None:
    """Raise ConfigError unless `parameters` names a known type and has its keys, in range, and no others."""
    rope_type = parameters.get("rope_type")
    if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
        raise ConfigError(f"rope_parameters: rope_type is {rope_type!r}; known types are {', '.join(ROPE_TYPES)}")
    required, optional = ROPE_TYPES[rope_type]
    missing = [key for key in required if parameters.get(key) is None]
    if missing:
        raise ConfigError(f"rope_parameters: rope_type {rope_type!r} needs {', '.join(missing)}; add to config.json")
    allowed = {"rope_type", "type", "rope_theta", *required, *optional}
    if parameters.get("partial_rotary_factor") in (None, 1, 1.0):
        allowed.add("partial_rotary_factor")
    unknown = sorted(set(parameters) - allowed)
    if unknown:
        raise ConfigError(
            f"rope_parameters: {unknown[0]} = {parameters[unknown[0]]!r} has no meaning for rope_type {rope_type!r}; "
            f"allowed are {', '.join(sorted(allowed))}"
        )
    _validate_rope_values(parameters, allowed, head_dim)


def _validate_rope_values(parameters: Json, allowed: set[str], head_dim: int) -> None:
    for key in sorted(allowed - {"rope_type", "type", "truncate", "short_factor", "long_factor"}):
        _require_positive(f"rope_parameters.{key}", parameters.get(key))
    for key in ("rope_theta", "original_max_position_embeddings"):
        if number_of(parameters, key, 2.0) <= 1:
            raise ConfigError(f"rope_parameters: {key} is {parameters[key]!r}; it must be larger than 1")
    if not isinstance(parameters.get("truncate", True), bool):
        raise ConfigError(f"rope_parameters: truncate is {parameters['truncate']!r}; it must be true or false")
    for key in ("short_factor", "long_factor"):
        _require_factors(key, parameters.get(key), head_dim // 2)
    if parameters["rope_type"] == "llama3" and number_of(parameters, "high_freq_factor") <= number_of(
        parameters, "low_freq_factor"
    ):
        raise ConfigError(
            f"rope_parameters: high_freq_factor {parameters['high_freq_factor']!r} must be larger than "
            f"low_freq_factor {parameters['low_freq_factor']!r}"
        )


def _require_positive(name: str, value: object) -> None:
    if value is None:
        return
    # Larger whole numbers than a float can hold compare as such.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < cast(float, value) < sys.float_info.max:
        raise ConfigError(f"{name} is {value!r}; it must be a finite number above 0")


def _require_factors(key: str, values: object, count: int) -> None:
    if values is None:
        return
    if not isinstance(values, (list, tuple)) or len(values) != count:
        came = f"{len(values)} numbers" if isinstance(values, (list, tuple)) else repr(values)
        raise ConfigError(f"rope_parameters: {key} is {came}; it must be a list of head_dim / 2 = {count} numbers")
    for value in values:
        _require_positive(f"rope_parameters.{key}", value)


def number_of(parameters: Json, key: str, default: float = 0.0) -> float:
    """Return a number of the parameters, `default` where it is missing or null."""
    value = parameters.get(key)
    return default if value is None else float(cast(float, value))
