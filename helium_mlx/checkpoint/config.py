"""`HeliumConfig`: the numbers a model is built from, as transformers' `config.json` spells them.

Reads the spellings of transformers v4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and v5 (`rope_parameters`,
`dtype`); writes v5's, with `rope_theta` kept at the top level for mlx-lm and mlx-swift-lm. Every field is used or
rejected. `config_keys.py` says of every other key whether it is refused; what nobody reads is kept in `extra` for
writing back.

Two model types are known: `helium` (interleaved RoPE, no bias on `o_proj`) and `llama` (half-split RoPE), which is
what the published Helium-1-2b checkpoints are.
"""

import copy
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, cast

from helium_mlx.checkpoint.config_keys import APPLIED, HARMLESS, REFUSED, model_type_of, refuse_keys
from helium_mlx.checkpoint.kyutai_config import inferred_values
from helium_mlx.checkpoint.rope_parameters import (
    merge_spellings,
    original_context,
    validate_rope_parameters,
    without_effect,
)
from helium_mlx.errors import CheckpointError, ConfigError, KeywordError, one_line, shown, unknown_keyword
from helium_mlx.files.hub import resolve_file
from helium_mlx.files.hub_access import HubAccess
from helium_mlx.files.local_paths import write_published
from helium_mlx.files.names import CONFIG_FILE
from helium_mlx.files.untrusted import MalformedFile, UnreadableFile, read_json_object
from helium_mlx.json_writer import to_json
from helium_mlx.option_values import path_of, plain_values

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
DTYPES = ("bfloat16", "float16", "float32")

# What `model/activations.py` has: transformers' names, `transformers.activations.ACT2CLS`.
# fmt: off
ACTIVATION_NAMES = frozenset((
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu",
    "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "xielu",
))
# fmt: on

MAX_LABELS = 100_000
MAX_EOS_TOKENS = 1000

# Every number of rope_parameters, which go through powers and logarithms; published ones lie from 0.1 to 1e9.
ROPE_RANGE = (1e-12, 1e12)

# transformers' LlamaConfig, where a config.json leaves a field out.
_LLAMA_DEFAULTS: dict[str, object] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "pad_token_id": None,
}

# Fields that transformers leaves out of config.json while they have these values.
_UNWRITTEN_DEFAULTS: dict[str, object] = {
    "dtype": None,
    "problem_type": None,
    "classifier_dropout": None,
    "hidden_dropout": None,
    "token_classification_bias": True,
    "output_hidden_states": False,
    "output_attentions": False,
    "return_dict": True,
}
# Quantizers that also round weights which are stored dense, whenever they are used.
_ROUNDS_DENSE_WEIGHTS = ("'bitnet'",)
# What transformers has as attributes of their own.
_OTHER_SPELLINGS = {
    "rope_theta": "it in rope_parameters",
    "rope_scaling": "rope_parameters",
    "partial_rotary_factor": "it in rope_parameters",
    "original_max_position_embeddings": "it in rope_parameters",
    "torch_dtype": "dtype",
    "quantization_config": "quantization",
}
_DEFAULT_ROPE_THETA = {"helium": 100_000.0, "llama": 10_000.0}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_FLAGS = (
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "use_cache",
    "token_classification_bias",
    "output_hidden_states",
    "output_attentions",
    "return_dict",
)
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass
class HeliumConfig:
    """The shape of a Helium model; the defaults describe `kyutai/helium-1-preview-2b`.

    Field names and meanings are transformers'. `head_dim` and `num_key_value_heads` may be None: hidden_size /
    num_attention_heads, and num_attention_heads. `num_labels` follows from `id2label`, or is 2. `quantization` is
    MLX's: `group_size`, `bits` and `mode`, and entries that differ, keyed by module path. `dtype` is the one that the
    tensors are stored in.

    Fields may be assigned later, too: `num_labels`, `id2label` and `label2id` stay consistent. In a model's config, as
    in transformers, what the model was built from (`hidden_act`, `rope_parameters`, `model_type`, sizes) is saved then,
    and computed with where it is next loaded; `from_pretrained(path, rope_parameters=…)` loads with it at once.

    Raises ConfigError, which names field, value and what is allowed, before anything is allocated.
    """

    vocab_size: int = 48000
    hidden_size: int = 2560
    intermediate_size: int = 7040
    num_hidden_layers: int = 24
    num_attention_heads: int = 20
    num_key_value_heads: int = cast(int, None)
    head_dim: int = cast(int, None)
    hidden_act: str = "silu"
    attention_dropout: float = 0.0
    max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-8
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, object] = field(default_factory=dict)
    pad_token_id: int | None = 3
    eos_token_id: int | list[int] | None = 2
    bos_token_id: int | None = 1
    attention_bias: bool = False
    mlp_bias: bool = False
    num_labels: int = cast(int, None)
    id2label: dict[int, str] = field(default_factory=dict)
    label2id: dict[str, int] = field(default_factory=dict)
    problem_type: str | None = None
    classifier_dropout: float | None = None
    hidden_dropout: float | None = None
    token_classification_bias: bool = True
    output_hidden_states: bool = False
    output_attentions: bool = False
    return_dict: bool = True
    dtype: str | None = None
    model_type: str = "helium"
    quantization: dict[str, object] | None = None
    extra: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._require_model_type()
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self._require_sizes()
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        self._require_heads()
        self._require_values()
        self.__dict__.update(_labels(self.num_labels, self.id2label, self.label2id))
        self._take_rope_parameters()
        self.__dict__["_is_made"] = True

    @property
    def interleaved_rope(self) -> bool:
        """Whether RoPE rotates pairs (2i, 2i + 1), as Helium does, rather than (i, i + d/2), as Llama does."""
        return self.model_type == "helium"

    @property
    def output_bias(self) -> bool:
        """Whether `o_proj` has a bias: in transformers, Llama's follows `attention_bias` and Helium's never has one."""
        return self.attention_bias and self.model_type == "llama"

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end-of-stream ids as a tuple, empty where there is none."""
        if self.eos_token_id is None:
            return ()
        return tuple(self.eos_token_id) if isinstance(self.eos_token_id, list) else (self.eos_token_id,)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> "HeliumConfig":
        """Build a config from the contents of a `config.json`, in either spelling; `values` is left as it is."""
        if not isinstance(values, dict):
            raise ConfigError(f"a config must be a JSON object, not {type(values).__name__}")
        if values.get("model_type") == "llama":
            values = _LLAMA_DEFAULTS | values
        return cls(**_as_fields(values))  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_json_file(cls, path: str | Path) -> "HeliumConfig":
        """Read a `config.json`. Raises CheckpointError if there is none, ConfigError if it is not a valid one."""
        return _read_file(Path(path)).config

    @classmethod
    def of_directory(cls, directory: Path) -> "HeliumConfig":
        """Return the config of a checkpoint directory: its `config.json`, or what Kyutai's own layout implies.

        Raises CheckpointError or ConfigError, one line.
        """
        return read_config(directory).config

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **values: object,
    ) -> "HeliumConfig":
        """Read the config of a checkpoint directory, a Hub repository, or "demo"; no weights are fetched.

        `subfolder` is the folder of the repository or directory that holds it; `files/hub_access.py` has the options
        of a download. `values` replace what is read. A warning names what has no effect.
        Raises CheckpointError if there is none, ConfigError if it is not a valid one.
        """
        access = HubAccess(token, cache_dir, local_files_only, force_download)
        path = resolve_file(path_or_repo, CONFIG_FILE, revision=revision, subfolder=subfolder or None, access=access)
        found = read_config(path.parent)
        if found.warnings:
            warnings.warn(f"{path}: {'; '.join(found.warnings)}", stacklevel=2)
        return found.config.with_values(values) if values else found.config

    def update(self, values: Mapping[str, object]) -> None:
        """Assign several fields, one after the other. Raises ConfigError as an assignment does."""
        for name, value in values.items():
            setattr(self, name, value)

    def to_json_string(self) -> str:
        """Return what `config.json` holds, as text."""
        return to_json(self.to_dict(), indent=2) + "\n"

    def to_json_file(self, path: str | Path) -> None:
        """Write a `config.json` by any name. Raises CheckpointError if it cannot be, ConfigError as a save does."""
        self.with_values({})
        write_published(path_of(path), self.to_dict())

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` into `directory`, which is made if need be. Raises CheckpointError if it cannot be.

        Raises ConfigError, before anything is written, for values assigned since that do not fit each other.
        """
        self.with_values({})
        write_published(Path(directory) / CONFIG_FILE, self.to_dict(), in_new_folder=True)

    def to_dict(self) -> dict[str, object]:
        """Return what `config.json` holds: all fields and the keys kept from reading, sorted."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        values["rope_parameters"] = dict(self.rope_parameters)
        values["rope_theta"] = self.rope_parameters["rope_theta"]
        quantization = values.pop("quantization")
        scaling = {key: value for key, value in self.rope_parameters.items() if key != "rope_theta"}
        if scaling["rope_type"] != "default":
            # mlx-lm's Llama reads scaling in this spelling only, and would ignore the other without a word.
            values["rope_scaling"] = scaling
        if quantization is not None:
            values["quantization"] = values["quantization_config"] = dict(quantization)
        # As in transformers, what a causal LM has no use for is written only where it was set.
        values["id2label"] = {str(index): label for index, label in self.id2label.items()}
        del values["num_labels"]
        if self.label2id == _numbers(_default_labels(2)) and self.num_labels == 2:
            del values["id2label"], values["label2id"]
        for name, default in _UNWRITTEN_DEFAULTS.items():
            if values[name] == default:
                del values[name]
        architecture = "HeliumForCausalLM" if self.model_type == "helium" else "LlamaForCausalLM"
        return dict(sorted(({"architectures": [architecture]} | self.extra | values).items()))

    def with_values(self, values: Mapping[str, object]) -> "HeliumConfig":
        """Return a copy with some values changed; a new `num_labels` gives the labels default names."""
        unknown = sorted(set(values) - {f.name for f in fields(self)})
        if unknown:
            raise ConfigError(
                f"{unknown[0]} is neither an option of from_pretrained here nor a field of HeliumConfig; "
                f"fields are {', '.join(_field_names())}"
            )
        merged = self.to_dict()
        for spelled_twice in ("rope_theta", "rope_scaling", "quantization_config"):
            merged.pop(spelled_twice, None)
        merged |= values
        if "num_labels" in values and "id2label" not in values:
            merged.pop("id2label", None)
        if values.keys() & {"num_labels", "id2label"} and "label2id" not in values:
            merged.pop("label2id", None)
        return HeliumConfig.from_dict(merged)

    def __setattr__(self, name: str, value: object) -> None:
        value = plain_values(value)
        refuse_keys({name: value})
        if "_is_made" not in self.__dict__:
            super().__setattr__(name, value)
        elif name in ("num_labels", "id2label", "label2id"):
            self._take_labels(name, value)
        elif name in HARMLESS:
            self.extra[name] = value
        else:
            if name not in self.__dataclass_fields__:
                remedy = _OTHER_SPELLINGS.get(name, f"extra[{name!r}], which is written with them")
                raise ConfigError(f"{name} is not a field of HeliumConfig; set {remedy}")
            changed = copy.copy(self)
            changed.__dict__[name] = value
            changed._require_alone(name)
            self.__dict__[name] = changed.__dict__[name]

    if not TYPE_CHECKING:
        # For checkers of types the fields are all that there is.
        def __getattr__(self, name: str) -> object:
            extra = self.__dict__.get("extra", {})
            if name not in extra:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return extra[name]

    def _take_labels(self, name: str, value: object) -> None:
        # As with transformers' properties: a number that is another one makes new names, names give the number.
        if name == "id2label":
            self.__dict__.update(_labels(None, value))
        elif name == "label2id":
            self.__dict__.update(_labels(None, self.id2label, value))
        elif value != self.num_labels:
            self.__dict__.update(_labels(value, {}))

    def _take_rope_parameters(self) -> None:
        parameters = self._standardized_rope_parameters()
        validate_rope_parameters(parameters, self.head_dim)
        self.__dict__["rope_parameters"] = parameters
        self._require_rope_range()

    def _require_alone(self, name: str) -> None:
        """Check a field, but for how it fits the others, which may be about to change."""
        if name == "rope_parameters":
            self._take_rope_parameters()
        elif name in _SIZES:
            self._require_sizes()
        else:
            self._require_model_type()
            self._require_values()

    def _require_model_type(self) -> None:
        if not isinstance(self.model_type, str) or self.model_type not in _DEFAULT_ROPE_THETA:
            raise ConfigError(
                f"model_type is {shown(self.model_type)}; known are 'helium' (interleaved RoPE) and 'llama' "
                "(Helium-1-2b)"
            )

    def _require_sizes(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if name == "head_dim" and value is None and "_is_made" not in self.__dict__:
                continue
            if type(value) is not int or not 0 < value < 2**31:
                raise ConfigError(f"{name} is {shown(value)}; it must be a whole number from 1 to 2^31 - 1")

    def _require_heads(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads:
            raise ConfigError(f"num_key_value_heads is {kv_heads}; it must divide num_attention_heads = {heads}")
        if self.head_dim % 2 or self.head_dim == 0:
            raise ConfigError(f"head_dim is {self.head_dim}; RoPE rotates pairs, so it must be even and above 0")
        # transformers' Helium has a hidden x hidden o_proj; Llama's is (heads * head_dim) x hidden.
        if self.model_type == "helium" and heads * self.head_dim != self.hidden_size:
            raise ConfigError(
                f"num_attention_heads * head_dim is {heads} * {self.head_dim} = {heads * self.head_dim}; "
                f"for model_type 'helium' it must equal hidden_size = {self.hidden_size}"
            )

    def _require_values(self) -> None:
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {shown(getattr(self, name))}; it must be true or false")
        self._require_fractions()
        if not isinstance(self.hidden_act, str) or self.hidden_act not in ACTIVATION_NAMES:
            raise ConfigError(
                f"hidden_act is {shown(self.hidden_act)}; known are {', '.join(sorted(ACTIVATION_NAMES))}"
            )
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise ConfigError(f"problem_type is {shown(self.problem_type)}; known are {', '.join(PROBLEM_TYPES)}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"dtype is {shown(self.dtype)}; known are {', '.join(DTYPES)}")
        for name in _TOKEN_IDS:
            self._require_token_id(name)
        if self.quantization is not None and not isinstance(self.quantization, dict):
            raise ConfigError(
                f"quantization is {shown(self.quantization)}; it must be an object with group_size and bits"
            )
        self._require_whole_quantization()

    def _require_whole_quantization(self) -> None:
        quantization = self.quantization or {}
        for entry in (quantization, *(value for value in quantization.values() if isinstance(value, dict))):
            for name in ("group_size", "bits"):
                # 4.0 equals 4, and MLX takes whole numbers only.
                if isinstance(entry.get(name), float):
                    raise ConfigError(f"quantization {name} is {shown(entry[name])}; it must be a whole number")

    def _require_fractions(self) -> None:
        for name, low, high in (
            ("rms_norm_eps", 0.0, 1.0),
            ("initializer_range", 0.0, 100.0),
            ("attention_dropout", 0.0, 1.0),
            ("classifier_dropout", 0.0, 1.0),
            ("hidden_dropout", 0.0, 1.0),
        ):
            value: float | None = getattr(self, name)
            if value is None and name in _UNWRITTEN_DEFAULTS:
                continue
            if (
                value is None
                or not _is_number(value)
                or not low <= value < high
                or (name == "rms_norm_eps" and value == 0)
            ):
                raise ConfigError(
                    f"{name} is {shown(value)}; it must be a finite number from {low:g} to below {high:g}"
                )

    def _require_token_id(self, name: str) -> None:
        value: object = getattr(self, name)
        ids: list[object] = value if name == "eos_token_id" and isinstance(value, list) and value else [value]
        if value is None:
            return
        if len(ids) > MAX_EOS_TOKENS:
            raise ConfigError(f"{name} lists {len(ids)} ids; at most {MAX_EOS_TOKENS} are read")
        for i in ids:
            # Helium's pad id, and Llama's -1, may lie outside of the vocabulary: they are never looked up.
            if type(i) is not int or i >= 2**31 or (i < 0 and name != "pad_token_id"):
                raise ConfigError(f"{name} is {shown(value)}; it must be a token id (a whole number from 0 on)")
            if name != "pad_token_id" and i >= self.vocab_size:
                raise ConfigError(f"{name} is {shown(value)}; ids must be below vocab_size = {self.vocab_size}")

    def _standardized_rope_parameters(self) -> dict[str, object]:
        if not isinstance(self.rope_parameters, dict):
            raise ConfigError(f"rope_parameters is {shown(self.rope_parameters)}; it must be an object")
        parameters = dict(self.rope_parameters)
        if "rope_type" not in parameters:
            parameters["rope_type"] = parameters.pop("type", "default")
        if parameters.get("rope_theta") is None:
            parameters["rope_theta"] = _DEFAULT_ROPE_THETA[self.model_type]
        return parameters | original_context(parameters, self.extra, self.max_position_embeddings)

    def _require_rope_range(self) -> None:
        for key, value in self.rope_parameters.items():
            for number in value if isinstance(value, (list, tuple)) else (value,):
                if _is_number(number) and not ROPE_RANGE[0] <= cast(float, number) <= ROPE_RANGE[1]:
                    raise ConfigError(
                        f"rope_parameters.{key} has {shown(number)}; numbers there lie from {ROPE_RANGE[0]:g} to "
                        f"{ROPE_RANGE[1]:g}"
                    )


@dataclass(frozen=True)
class ConfigFile:
    """The config of a checkpoint directory; `warnings` are sentences about what of the file has no effect.

    `foreign_quantization` is the quantizer of another program that the file names; the weights may be dense still.
    """

    config: HeliumConfig
    warnings: tuple[str, ...] = ()
    foreign_quantization: str | None = None


def read_config(directory: Path) -> ConfigFile:
    """Read the config of a checkpoint directory: its `config.json`, or what Kyutai's own layout implies.

    Raises CheckpointError or ConfigError, one line.
    """
    inferred = inferred_values(directory)
    if inferred is None:
        return _read_file(directory / CONFIG_FILE)
    path, values = inferred
    try:
        return ConfigFile(HeliumConfig(**values))  # pyright: ignore[reportArgumentType]
    except ConfigError as error:
        raise CheckpointError(f"{path}: the shapes are not a Helium's: {error}") from None


def _read_file(path: Path) -> ConfigFile:
    try:
        values = read_json_object(path)
    except UnreadableFile as problem:
        if os.path.lexists(path):
            raise CheckpointError(f"{path}: {problem}") from None
        raise CheckpointError(f"{path}: no such file; a checkpoint directory needs a {CONFIG_FILE}") from None
    except MalformedFile as problem:
        raise ConfigError(f"{path}: {problem}") from None
    try:
        values["model_type"] = model_type_of(values)
        values, said = without_effect(values)
        method = foreign_quantization(values)
        if method is not None and method not in _ROUNDS_DENSE_WEIGHTS:
            del values["quantization_config"]
        return ConfigFile(HeliumConfig.from_dict(values), said, method)
    except ConfigError as error:
        raise ConfigError(f"{path}: {one_line(str(error))}") from None


def _as_fields(values: Mapping[str, object]) -> dict[str, object]:
    """Return the contents of a `config.json`, in either spelling, by the names of fields; the rest is `extra`."""
    method = foreign_quantization(values)
    if method is not None:
        raise ConfigError(foreign_quantization_problem(method))
    refuse_keys(values)
    values = dict(values)
    values["rope_parameters"] = merge_spellings(values, _DEFAULT_ROPE_THETA.get(str(values.get("model_type"))))
    values["dtype"] = _merge_dtype_spellings(values)
    # mlx-lm writes the same object under both names.
    quantization_config = values.pop("quantization_config", None)
    if values.get("quantization") is None:
        values["quantization"] = quantization_config
    known = {f.name for f in fields(HeliumConfig)} - {"extra"}
    extra = {key: value for key, value in values.items() if key not in known and key != "transformers_weights"}
    return {**{key: value for key, value in values.items() if key in known}, "extra": extra}


def _with_all_spellings(made: Callable[..., None]) -> Callable[..., None]:
    """Have HeliumConfig take what else transformers' config does: `rope_theta`, `architectures` and so on."""
    names = {f.name for f in fields(HeliumConfig)}

    @wraps(made)
    def make(self: HeliumConfig, *sizes: object, **values: object) -> None:
        others = values.keys() - names
        unknown = sorted(others - APPLIED - HARMLESS - REFUSED.keys())
        if unknown:
            raise KeywordError(unknown_keyword("HeliumConfig", unknown[0], [*names]))
        extra = cast(dict[str, object], values.pop("extra", {}))
        made(self, *sizes, **(_as_fields(extra | values) if others else values | {"extra": extra}))

    return make


HeliumConfig.__init__ = _with_all_spellings(HeliumConfig.__init__)


def foreign_quantization(values: Mapping[str, object]) -> str | None:
    """Return how a config's `quantization_config` names the quantizer of another program; None for MLX's or none."""
    entry = values.get("quantization_config")
    if entry is None or values.get("quantization") is not None:
        return None
    if not isinstance(entry, dict):
        return "'?'"
    return shown(entry["quant_method"]) if "quant_method" in entry else None


def foreign_quantization_problem(method: str) -> str:
    """Return why a checkpoint that another program quantized is refused, and what to do."""
    return (
        f"quantization_config names quant_method {method}, which MLX cannot read; "
        "use the checkpoint in bfloat16, float16 or float32"
    )


def _field_names() -> list[str]:
    return [f.name for f in fields(HeliumConfig) if f.name != "extra"]


def _default_labels(count: int) -> dict[int, str]:
    return {index: f"LABEL_{index}" for index in range(count)}


def _numbers(id2label: Mapping[int, str]) -> dict[str, int]:
    return {label: index for index, label in id2label.items()}


def _labels(number: object, names: object, numbers: object = None) -> dict[str, object]:
    """Return the fields for labels, of which `number` may be None, `names` and `numbers` empty. Raises ConfigError."""
    # Each label gets a name, so their number is memory that no tensor vouches for yet.
    if number is not None and (not _is_int(number) or not 0 < cast(int, number) <= MAX_LABELS):
        raise ConfigError(f"num_labels is {shown(number)}; it must be a whole number from 1 to {MAX_LABELS}")
    if not names:
        names = _default_labels(2 if number is None else cast(int, number))
    if not isinstance(names, dict):
        raise ConfigError(f"id2label is {shown(names)}; it must map numbers to names")
    if len(names) > MAX_LABELS:
        raise ConfigError(f"id2label has {len(names)} labels; at most {MAX_LABELS} are read")
    try:
        id2label = {int(index): str(label) for index, label in names.items()}
    except (TypeError, ValueError):
        raise ConfigError(f"id2label is {shown(names)}; it must map numbers to names") from None
    if sorted(id2label) != list(range(len(id2label))):
        raise ConfigError(f"id2label has the numbers {shown(sorted(id2label))}; they must be 0, 1, and so on")
    if number is not None and number != len(id2label):
        raise ConfigError(f"num_labels is {number}, but id2label has {len(id2label)} labels; keep one")
    return {"num_labels": len(id2label), "id2label": id2label, "label2id": _label2id(numbers) or _numbers(id2label)}


def _label2id(numbers: object) -> dict[str, int]:
    entries = {} if numbers is None else numbers
    if isinstance(entries, dict) and len(entries) <= MAX_LABELS:
        # transformers' own type for it has numbers as text too.
        read = {label: int(i) if isinstance(i, str) and i.isdecimal() else i for label, i in entries.items()}
        if all(isinstance(label, str) and _is_int(index) for label, index in read.items()):
            return cast("dict[str, int]", read)
    raise ConfigError(f"label2id is {shown(numbers)}; it must map names to numbers")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _merge_dtype_spellings(values: dict[str, object]) -> str | None:
    """Take `torch_dtype` and `dtype` out of `values` and return v5's one, without a leading `torch.`."""
    old, new = values.pop("torch_dtype", None), values.pop("dtype", None)
    if old is not None and new is not None and str(old).removeprefix("torch.") != str(new).removeprefix("torch."):
        raise ConfigError(f"torch_dtype is {shown(old)}, but dtype is {shown(new)}; keep one")
    dtype = old if new is None else new
    if dtype is None or not isinstance(dtype, str):
        if dtype is None:
            return None
        raise ConfigError(f"dtype is {shown(dtype)}; known are {', '.join(DTYPES)}")
    return dtype.removeprefix("torch.")
