"""The `rope_parameters` of a config: known types, their keys and ranges. `model/rope.py` computes with them."""

import sys
from collections.abc import Mapping
from typing import cast

from helium_mlx.errors import ConfigError, one_line, shown, some

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


# Types whose `original_max_position_embeddings` may stand at the top level of a config, or be left out.
_WITH_ORIGINAL_CONTEXT = ("yarn", "longrope", "llama3")


def merge_spellings(values: dict[str, object], default_theta: float | None) -> dict[str, object]:
    """Take `rope_theta`, `rope_scaling` and `partial_rotary_factor` out of `values`; return one `rope_parameters`.

    transformers takes `rope_scaling` for the whole where there are both objects. Where that would lose what the other
    one says, or two spellings differ, this raises ConfigError.
    """
    theta, scaling = values.pop("rope_theta", None), values.pop("rope_scaling", None)
    parameters, partial = values.pop("rope_parameters", None), values.pop("partial_rotary_factor", None)
    for name, value in (("rope_scaling", scaling), ("rope_parameters", parameters)):
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"{name} is {shown(value)}; it must be an object")
    merged = cast(dict[str, object], dict(parameters or {}))  # pyright: ignore[reportArgumentType, reportCallIssue]
    in_scaling = cast(dict[str, object], dict(scaling or {}))  # pyright: ignore[reportArgumentType, reportCallIssue]
    if "type" in in_scaling:
        in_scaling.setdefault("rope_type", in_scaling.pop("type"))
    lost = set(merged) - set(in_scaling) - {"type"} if in_scaling else set()
    if lost == {"rope_theta"} and merged["rope_theta"] in (theta, default_theta):
        lost = set()
    if lost:
        raise ConfigError(f"rope_parameters says {shown(min(lost))}, and rope_scaling does not; keep one of the two")
    for key, value in in_scaling.items():
        if merged.setdefault(key, value) != value:
            raise ConfigError(
                f"rope_scaling says {shown(key)} = {shown(value)}, rope_parameters says {shown(merged[key])}; keep one"
            )
    if theta is not None and merged.setdefault("rope_theta", theta) != theta:
        raise ConfigError(
            f"rope_theta is {shown(theta)}, but rope_parameters says {shown(merged['rope_theta'])}; keep one"
        )
    if partial is not None:
        merged.setdefault("partial_rotary_factor", partial)
    return merged


def without_effect(values: Json) -> tuple[dict[str, object], tuple[str, ...]]:
    """Return a config's values less the RoPE keys that do nothing with its type, and sentences that name those.

    transformers warns of them and continues.
    """
    kept, said = dict(values), []
    scaling, parameters = values.get("rope_scaling"), values.get("rope_parameters")
    place = "rope_scaling" if isinstance(scaling, dict) and scaling else "rope_parameters"
    given = cast(Json, values.get(place)) if isinstance(values.get(place), dict) else {}
    rope_type = given.get("rope_type", given.get("type", "default"))
    if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
        return kept, ()
    known = {"rope_type", "type", "rope_theta", *(key for keys in ROPE_TYPES[rope_type] for key in keys)}
    if rope_type != "default":
        known.add("partial_rotary_factor")
    elif kept.get("partial_rotary_factor") is not None:
        said.append(f"partial_rotary_factor = {shown(kept.pop('partial_rotary_factor'))}")
    for name, entry in (("rope_scaling", scaling), ("rope_parameters", parameters)):
        if not isinstance(entry, dict):
            continue
        # An object would be the parameters of a kind of layer.
        idle = [key for key in entry if key not in known and not isinstance(entry[key], dict)]
        kept[name] = {key: value for key, value in entry.items() if key not in idle}
        said += [f"{name}.{one_line(key, 60)} = {shown(entry[key])}" for key in sorted(idle)]
    return kept, ((f"{some(said)} left out, without effect for rope_type {rope_type!r}",) if said else ())


def original_context(parameters: Json, others: Json, max_position_embeddings: int) -> dict[str, object]:
    """Return the `original_max_position_embeddings` that counts: the config's own comes before `rope_parameters`'."""
    name = "original_max_position_embeddings"
    if parameters["rope_type"] not in _WITH_ORIGINAL_CONTEXT:
        return {}
    return {name: others[name] if name in others else parameters.get(name, max_position_embeddings)}


def validate_rope_parameters(parameters: Json, head_dim: int) -> None:
    """Raise ConfigError unless `parameters` names a known type and has its keys, in range, and no others."""
    rope_type = parameters.get("rope_type")
    if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
        raise ConfigError(f"rope_parameters: rope_type is {shown(rope_type)}; known types are {', '.join(ROPE_TYPES)}")
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
            f"rope_parameters: {one_line(unknown[0], 60)} = {shown(parameters[unknown[0]])} has no meaning for "
            f"rope_type {rope_type!r}; allowed are {', '.join(sorted(allowed))}"
        )
    _validate_rope_values(parameters, allowed, head_dim)


def _validate_rope_values(parameters: Json, allowed: set[str], head_dim: int) -> None:
    for key in sorted(allowed - {"rope_type", "type", "truncate", "short_factor", "long_factor"}):
        _require_positive(f"rope_parameters.{key}", parameters.get(key))
    for key in ("rope_theta", "original_max_position_embeddings"):
        if number_of(parameters, key, 2.0) <= 1:
            raise ConfigError(f"rope_parameters: {key} is {shown(parameters[key])}; it must be larger than 1")
    if not isinstance(parameters.get("truncate", True), bool):
        raise ConfigError(f"rope_parameters: truncate is {shown(parameters['truncate'])}; it must be true or false")
    for key in ("short_factor", "long_factor"):
        _require_factors(key, parameters.get(key), head_dim // 2)
    if parameters["rope_type"] == "llama3" and number_of(parameters, "high_freq_factor") <= number_of(
        parameters, "low_freq_factor"
    ):
        raise ConfigError(
            f"rope_parameters: high_freq_factor {shown(parameters['high_freq_factor'])} must be larger than "
            f"low_freq_factor {shown(parameters['low_freq_factor'])}"
        )


def _require_positive(name: str, value: object) -> None:
    if value is None:
        return
    # Larger whole numbers than a float can hold compare as such.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < cast(float, value) < sys.float_info.max:
        raise ConfigError(f"{name} is {shown(value)}; it must be a finite number above 0")


def _require_factors(key: str, values: object, count: int) -> None:
    if values is None:
        return
    if not isinstance(values, (list, tuple)) or len(values) != count:
        came = f"{len(values)} numbers" if isinstance(values, (list, tuple)) else shown(values)
        raise ConfigError(f"rope_parameters: {key} is {came}; it must be a list of head_dim / 2 = {count} numbers")
    for value in values:
        _require_positive(f"rope_parameters.{key}", value)


def number_of(parameters: Json, key: str, default: float = 0.0) -> float:
    """Return a number of the parameters, `default` where it is missing or null."""
    value = parameters.get(key)
    return default if value is None else float(cast(float, value))
