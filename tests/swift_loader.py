"""What mlx-swift-lm needs of a checkpoint directory, checked without Swift: `problems(directory)`.

Its loader is strict: a tensor that the model has no parameter for is an error, and so is a parameter without a tensor.
A module is quantized where `<path>.scales` is there, with the settings that `config.json` has for its path or else on
top; `JSONDecoder` refuses null, and text, where Swift declares an Int. Read from its BaseConfiguration.swift,
Load.swift and Llama.swift. Nothing of the package is imported here: this is a second opinion. What is not checked:
values of tensors, and activations other than SiLU.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

INDEX_FILE = "model.safetensors.index.json"

SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "head_dim",
    "max_position_embeddings",
)
NUMBERS = ("rope_theta", "rms_norm_eps")
FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias")

FLOATS = ("BF16", "F16", "F32")
BYTES = {"BF16": 2, "F16": 2, "F32": 4, "U32": 4, "U8": 1}
MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")


@dataclass(frozen=True)
class Tensor:
    """What a header says of a tensor, and the file that it is in."""

    dtype: str
    shape: tuple[int, ...]
    file: str


@dataclass(frozen=True)
class Packing:
    """How a module's weight is quantized."""

    group_size: int
    bits: int
    mode: str


def problems(directory: Path, *, needs_tokenizer_json: bool = True) -> list[str]:
    """Return a sentence for each thing that would keep mlx-swift-lm from loading `directory`; none if it would.

    `needs_tokenizer_json` False is for a checkpoint whose source has only SentencePiece's model.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    found = _config_problems(config)
    if needs_tokenizer_json and not (directory / "tokenizer.json").is_file():
        found.append("there is no tokenizer.json")
    if found:
        return found
    tensors, of_files = _read_tensors(directory)
    modules = dict(_modules(config))
    general, special, of_quantization = _quantization(config, modules)
    of_tensors = _tensor_problems(tensors, modules, dict(_other_parameters(config)), general, special)
    return of_files + of_quantization + of_tensors


def _config_problems(config: Mapping[str, object]) -> list[str]:
    found = [f"{name} is {config.get(name)!r}, no positive integer" for name in SIZES if not _is_size(config.get(name))]
    found += [f"{name} is {config.get(name)!r}, no number" for name in NUMBERS if not _is_number(config.get(name))]
    found += [f"{name} is {config.get(name)!r}, no boolean" for name in FLAGS if not isinstance(config.get(name), bool)]
    if config.get("model_type") not in ("helium", "llama"):
        found.append(f"model_type is {config.get('model_type')!r}")
    eos = config.get("eos_token_id")
    ids = cast("list[object]", eos if isinstance(eos, list) else [eos])
    if not ids or not all(_is_int(token) for token in ids):
        found.append(f"eos_token_id is {eos!r}, no integer nor a list of them")
    scaling = config.get("rope_scaling")
    if scaling is not None:
        known = isinstance(scaling, dict) and scaling.get("rope_type") in ("linear", "dynamic", "llama3")
        if not known or not _is_number(cast("dict[str, object]", scaling).get("factor")):
            found.append(f"rope_scaling is {scaling!r}; factor and a type that it knows are needed")
    return found


def _quantization(
    config: Mapping[str, object], modules: Mapping[str, tuple[int, int]]
) -> tuple[Packing | None, dict[str, Packing | None], list[str]]:
    """Return the settings on top, those of single modules, and what is wrong with either."""
    entry = config.get("quantization")
    if entry is None:
        return None, {}, []
    if not isinstance(entry, dict):
        return None, {}, [f"quantization is {entry!r}"]
    found = _packing_problems("quantization", entry)
    special: dict[str, Packing | None] = {}
    for path, value in entry.items():
        if path in ("group_size", "bits", "mode"):
            continue
        if path not in modules:
            found.append(f"quantization names {path}, which is no module of the model")
        elif value is False:
            special[path] = None
        elif isinstance(value, dict):
            found += (wrong := _packing_problems(f"quantization of {path}", value))
            special |= {} if wrong else {path: _packing(value)}
        else:
            found.append(f"quantization of {path} is {value!r}, neither false nor an object")
    general = None if _packing_problems("", entry) else _packing(entry)
    return general, special, found


def _packing_problems(what: str, entry: Mapping[str, object]) -> list[str]:
    found = [f"{what}: {key} is {entry.get(key)!r}, no integer" for key in ("group_size", "bits")
             if not _is_size(entry.get(key))]  # fmt: skip
    if entry.get("mode") not in MODES:
        found.append(f"{what}: mode is {entry.get('mode')!r}")
    return found


def _packing(entry: Mapping[str, object]) -> Packing:
    return Packing(cast(int, entry["group_size"]), cast(int, entry["bits"]), cast(str, entry["mode"]))


def _modules(config: Mapping[str, object]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the modules that have a matrix, by their paths, with rows and columns."""
    hidden, inner, vocabulary, layers, head_dim, heads, kv_heads = (
        cast(int, config[name])
        for name in (
            "hidden_size",
            "intermediate_size",
            "vocab_size",
            "num_hidden_layers",
            "head_dim",
            "num_attention_heads",
            "num_key_value_heads",
        )
    )
    yield "model.embed_tokens", (vocabulary, hidden)
    for index in range(layers):
        layer = f"model.layers.{index}"
        yield f"{layer}.self_attn.q_proj", (heads * head_dim, hidden)
        yield f"{layer}.self_attn.k_proj", (kv_heads * head_dim, hidden)
        yield f"{layer}.self_attn.v_proj", (kv_heads * head_dim, hidden)
        yield f"{layer}.self_attn.o_proj", (hidden, heads * head_dim)
        yield f"{layer}.mlp.gate_proj", (inner, hidden)
        yield f"{layer}.mlp.up_proj", (inner, hidden)
        yield f"{layer}.mlp.down_proj", (hidden, inner)
    if not config["tie_word_embeddings"]:
        yield "lm_head", (vocabulary, hidden)


def _other_parameters(config: Mapping[str, object]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the vectors: gains and biases."""
    hidden = cast(int, config["hidden_size"])
    for path, (rows, _) in _modules(config):
        # Only a Llama has a bias behind its attention.
        is_biased = config["attention_bias"] if ".self_attn." in path else ".mlp." in path and config["mlp_bias"]
        if is_biased and not (path.endswith("o_proj") and config["model_type"] == "helium"):
            yield f"{path}.bias", (rows,)
    for index in range(cast(int, config["num_hidden_layers"])):
        yield f"model.layers.{index}.input_layernorm.weight", (hidden,)
        yield f"model.layers.{index}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)


def _read_tensors(directory: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of the files that the loader would pick, and what is wrong with files and index."""
    present = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*.safetensors"))
    found: list[str] = []
    weight_map: dict[str, str] | None = None
    total_size = 0
    if (directory / INDEX_FILE).is_file():
        index = json.loads((directory / INDEX_FILE).read_text(encoding="utf-8"))
        weight_map, total_size = index["weight_map"], index["metadata"]["total_size"]
    files = sorted(set(weight_map.values())) if weight_map is not None else ["model.safetensors"]
    found += [f"{name} is not there" for name in files if name not in present]
    found += [f"{name} is no part of the checkpoint" for name in present if name not in files]
    tensors: dict[str, Tensor] = {}
    for name in [name for name in files if name in present]:
        content = (directory / name).read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.pop("__metadata__", None)
        if metadata != {"format": "mlx"}:
            found.append(f"{name}: metadata is {metadata!r}")
        found += [f"{tensor} is in {tensors[tensor].file} and in {name}" for tensor in header if tensor in tensors]
        tensors |= {key: Tensor(value["dtype"], tuple(value["shape"]), name) for key, value in header.items()}
    if weight_map is not None:
        lies_in = {name: tensor.file for name, tensor in tensors.items()}
        wrong = sorted(name for name, _ in lies_in.items() ^ weight_map.items())
        found += [f"the index has {name} elsewhere, or not at all" for name in dict.fromkeys(wrong)]
        size = sum(BYTES.get(tensor.dtype, 0) * math.prod(tensor.shape) for tensor in tensors.values())
        if size != total_size:
            found.append(f"the index says {total_size} bytes, the tensors have {size}")
    return tensors, found


def _tensor_problems(
    tensors: Mapping[str, Tensor],
    modules: Mapping[str, tuple[int, int]],
    others: Mapping[str, tuple[int, ...]],
    general: Packing | None,
    special: Mapping[str, Packing | None],
) -> list[str]:
    expected: dict[str, tuple[str | None, tuple[int, ...]]] = {name: (None, shape) for name, shape in others.items()}
    for path, shape in modules.items():
        packing = special.get(path, general) if f"{path}.scales" in tensors else None
        expected |= {f"{path}.{suffix}": value for suffix, value in _parts(shape, packing).items()}
    found = [f"{name} is missing" for name in expected if name not in tensors]
    found += [f"{name} is no parameter of the model" for name in tensors if name not in expected]
    floats = {tensors[name].dtype for name, (dtype, _) in expected.items() if dtype is None and name in tensors}
    if len(floats) > 1:
        found.append(f"there are several dtypes, {', '.join(sorted(floats))}")
    for name, (dtype, shape) in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            continue
        if tensor.shape != shape:
            found.append(f"{name} is {list(tensor.shape)}, not {list(shape)}")
        if tensor.dtype not in (FLOATS if dtype is None else (dtype,)):
            found.append(f"{name} is {tensor.dtype}")
    return found


def _parts(shape: tuple[int, int], packing: Packing | None) -> dict[str, tuple[str | None, tuple[int, ...]]]:
    """Return dtype and shape of what a matrix consists of; dtype None is any floating-point one."""
    if packing is None:
        return {"weight": (None, shape)}
    rows, columns = shape
    groups = (rows, columns // packing.group_size)
    codes: dict[str, tuple[str | None, tuple[int, ...]]] = {"weight": ("U32", (rows, columns * packing.bits // 32))}
    if packing.mode == "affine":
        return {**codes, "scales": (None, groups), "biases": (None, groups)}
    return {**codes, "scales": ("U8", groups)}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
