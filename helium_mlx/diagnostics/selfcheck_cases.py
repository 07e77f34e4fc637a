"""The cases of `selfcheck` and of the parity grid: configs, weights and inputs that are the same on every machine.

Weights and ids come from integer arithmetic alone, so only outputs need to be stored. Weights are large enough that
RoPE pairing, eps and masks show in the logits. This file runs no model: `selfcheck_runs.py` runs this package's, and
`tests/reference/make_selfcheck_reference.py` transformers'.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from itertools import combinations, product
from pathlib import Path
from typing import cast

import mlx.core as mx

from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.config import ACTIVATION_NAMES, HeliumConfig
from helium_mlx.checkpoint.layout import Architecture
from helium_mlx.checkpoint.quantization_settings import unquantized
from helium_mlx.files.names import CONFIG_FILE
from helium_mlx.files.safetensors_writer import SafetensorsWriter
from helium_mlx.model.losses import IGNORE_INDEX

BASE: dict[str, object] = {
    "model_type": "helium",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "hidden_act": "silu",
    "dtype": "float32",
}

# Matrices have the standard deviation gain / sqrt(3 * columns). In bfloat16 the larger gain takes torch's own error
# to 2.6e-2, over the bound of 2e-2 that this package is held to; with the smaller one it is 1.3e-2.
GAINS = {"float32": 2.2, "bfloat16": 1.3}
ROWS, LENGTH, PADDING, PAD_TOKEN = 2, 32, 5, 3
LABELS = 3
_HEADS = {"MHA": 4, "GQA": 2, "MQA": 1}
_BIASES = {"no bias": (), "attention bias": ("attention_bias",), "mlp bias": ("mlp_bias",)}
_BIASES["both biases"] = ("attention_bias", "mlp_bias")

# Every type is used past what it calls its original context; `dynamic` past max_position_embeddings, which is 16 here.
ROPE_TYPES: dict[str, dict[str, object]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 3.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 8},
    "longrope": {
        "short_factor": [1 + 0.1 * i for i in range(8)],
        "long_factor": [1 + 0.5 * i for i in range(8)],
        "original_max_position_embeddings": 8,
        "factor": 2.0,
    },
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
}

# How the 32 tokens are cut into calls.
_STEPS = {"cold": (32,), "continued from a cache": (20, 12), "chunked": (9, 1, 13, 9)}
AXES: dict[str, tuple[str, ...]] = {
    "heads": tuple(_HEADS),
    "family": ("helium", "llama"),
    "embedding": ("tied", "untied"),
    "biases": tuple(_BIASES),
    "activation": tuple(sorted(ACTIVATION_NAMES)),
    "rope": tuple(ROPE_TYPES),
    "mask": (
        "no mask",
        "left pad",
        "left pad with positions",
        "right pad",
        "packed positions",
        "4-D additive mask",
        "4-D boolean mask",
    ),
    "feed": tuple(_STEPS),
    "dtype": ("float32", "bfloat16"),
}


@dataclass(frozen=True)
class Case:
    """A point of the grid: one value of each axis."""

    heads: str
    family: str
    embedding: str
    biases: str
    activation: str
    rope: str
    mask: str
    feed: str
    dtype: str

    @property
    def name(self) -> str:
        """All values, which is what tells cases apart."""
        return "/".join(astuple(self))

    @property
    def features(self) -> tuple[str, ...]:
        """What a wrong result would put in doubt, as "axis: value"; the dtype aside."""
        return tuple(f"{f.name}: {getattr(self, f.name)}" for f in fields(self) if f.name != "dtype")

    @property
    def config_values(self) -> dict[str, object]:
        """The contents of `config.json`."""
        return config_values(
            num_hidden_layers=2,
            max_position_embeddings=16,
            num_key_value_heads=_HEADS[self.heads],
            model_type=self.family,
            tie_word_embeddings=self.embedding == "tied",
            hidden_act=self.activation,
            rope_parameters={"rope_type": self.rope, "rope_theta": 1000.0, **ROPE_TYPES[self.rope]},
            **dict.fromkeys(_BIASES[self.biases], True),
        )


def attention_mask(mask: str) -> mx.array | None:
    """Return a mask for all tokens: 2-D for padding; 4-D with holes, and for floats a slope, beside the diagonal."""
    if "pad" in mask:
        return real_tokens(mask).astype(mx.int32)
    if not mask.startswith("4-D"):
        return None
    queries, keys = mx.arange(LENGTH)[:, None], mx.arange(LENGTH)[None]
    heads = mx.arange(4)[:, None, None]
    rows = mx.arange(ROWS)[:, None, None, None]
    allowed = (queries >= keys) & (((keys + heads + 2 * rows) % 5 != 0) | (queries == keys))
    if mask == "4-D boolean mask":
        return allowed
    bias = -0.0625 * (queries - keys).astype(mx.float32)
    return mx.where(allowed, bias, mx.finfo(mx.float32).min)[:, :1]


def position_ids(mask: str) -> mx.array | None:
    """Return positions (ROWS, LENGTH): those of packed sequences, or those that `generate` gives to padded rows."""
    if mask == "packed positions":
        return mx.array([[*range(12), *range(20)], [*range(5), *range(23), *range(4)]])
    if mask == "left pad with positions":
        return mx.maximum(mx.cumsum(real_tokens(mask).astype(mx.int32), axis=1) - 1, 0)
    return None


@dataclass(frozen=True)
class Call:
    """The arguments of one forward pass; the mask covers what is cached, too."""

    input_ids: mx.array
    attention_mask: mx.array | None
    position_ids: mx.array | None


def write_case(directory: Path, case: Case) -> Path:
    """Write a case's checkpoint, in its dtype, so that rounding the weights is not a part of any error."""
    return write_checkpoint(directory, case.config_values, dtype=case.dtype, gain=GAINS[case.dtype])


@dataclass(frozen=True)
class HeadCase:
    """A model with a head, a batch with labels, and what transformers makes of them."""

    name: str
    architecture: Architecture
    labels: str
    padding: str = "no mask"
    config: tuple[tuple[str, object], ...] = ()
    gradients: bool = False

    @property
    def config_values(self) -> dict[str, object]:
        """The contents of `config.json`."""
        return config_values(num_hidden_layers=2, **dict(self.config))


def grid() -> list[Case]:
    """Return cases in which every two values of two axes meet, if they can, in the same order everywhere.

    Packed positions go with a cold start only: after a cache transformers does not look for them.
    """
    names = tuple(AXES)
    pairs = {
        pair: None
        for a, b in combinations(names, 2)
        for pair in product(((a, value) for value in AXES[a]), ((b, value) for value in AXES[b]))
        if _possible(dict(pair))
    }
    uses = {(name, value): 0 for name in names for value in AXES[name]}
    cases = []
    while pairs:
        chosen = dict(next(iter(pairs)))
        for name in names:
            if name not in chosen:
                options = [value for value in AXES[name] if _possible({**chosen, name: value})]
                chosen[name] = max(
                    options, key=lambda value: (_new_pairs(pairs, chosen, name, value), -uses[name, value])
                )
        for item in chosen.items():
            uses[item] += 1
        for a, b in combinations(names, 2):
            pairs.pop(((a, chosen[a]), (b, chosen[b])), None)
        cases.append(Case(**chosen))
    return cases


def _possible(chosen: dict[str, str]) -> bool:
    return chosen.get("mask") != "packed positions" or chosen.get("feed", "cold") == "cold"


def _new_pairs(pairs: dict, chosen: dict[str, str], name: str, value: str) -> int:
    order = list(AXES)
    found = 0
    for other in chosen.items():
        first, second = sorted([other, (name, value)], key=lambda item: order.index(item[0]))
        found += (first, second) in pairs
    return found


def calls(case: Case) -> Iterator[Call]:
    """Yield the forward passes of a case, each to continue the cache of the one before."""
    ids, mask, positions = token_ids(case.mask), attention_mask(case.mask), position_ids(case.mask)
    start = 0
    for step in _STEPS[case.feed]:
        end = start + step
        seen = mask
        if mask is not None:
            seen = mask[:, :end] if mask.ndim == 2 else mask[:, :, start:end, :end]
        yield Call(ids[:, start:end], seen, None if positions is None else positions[:, start:end])
        start = end


def token_ids(mask: str) -> mx.array:
    """Return ids (ROWS, LENGTH) that hold the padding token where `mask` says so, and nowhere else."""
    ids = mx.array([[4 + (row * 31 + 13 * i + i * i // 3) % 92 for i in range(LENGTH)] for row in range(ROWS)])
    return mx.where(real_tokens(mask), ids, PAD_TOKEN)


def real_tokens(mask: str) -> mx.array:
    """Return which tokens (ROWS, LENGTH) are not padding."""
    places, second_row = mx.arange(LENGTH)[None], mx.arange(ROWS)[:, None] == 1
    if mask.startswith("left pad"):
        return ~(second_row & (places < PADDING))
    if mask == "right pad":
        return ~(second_row & (places >= LENGTH - PADDING))
    return mx.ones((ROWS, LENGTH), mx.bool_)


def probes(mask: str) -> mx.array:
    """Return two real positions of each row, (ROWS, 2): what is stored of a case."""
    places = mx.where(real_tokens(mask), mx.arange(LENGTH)[None], -1).max(axis=1, keepdims=True)
    return mx.concatenate([places - 12, places], axis=1)


Overrides = tuple[tuple[str, object], ...]
_MQA_LLAMA: Overrides = (("model_type", "llama"), ("num_key_value_heads", 1), ("tie_word_embeddings", True))
_GQA_BIASED: Overrides = (("num_key_value_heads", 2), ("attention_bias", True), ("mlp_bias", True))
_YARN: Overrides = (("rope_parameters", {"rope_type": "yarn", "rope_theta": 1000.0, **ROPE_TYPES["yarn"]}),)
_THREE: Overrides = (("num_labels", LABELS),)
_SEQUENCES: Architecture = "ForSequenceClassification"
_TOKENS: Architecture = "ForTokenClassification"
HEAD_CASES = (
    HeadCase("causal LM", "ForCausalLM", "next token", "right pad", _GQA_BIASED, gradients=True),
    HeadCase("causal LM, tied llama", "ForCausalLM", "next token", "left pad", _MQA_LLAMA, gradients=True),
    HeadCase("causal LM, prelu", "ForCausalLM", "next token", "no mask", (("hidden_act", "prelu"),), gradients=True),
    HeadCase("causal LM, yarn", "ForCausalLM", "next token", "packed positions", _YARN, gradients=True),
    HeadCase("causal LM, padding as text", "ForCausalLM", "padding seen", "no mask", gradients=True),
    HeadCase("regression", _SEQUENCES, "numbers", "right pad", (("num_labels", 1),), gradients=True),
    HeadCase(
        "regression, 3 numbers", _SEQUENCES, "rows of numbers", "left pad", (*_THREE, ("problem_type", "regression"))
    ),
    HeadCase("single label", _SEQUENCES, "classes", "right pad", (*_THREE, *_GQA_BIASED), gradients=True),
    HeadCase("single label, left pad", _SEQUENCES, "classes", "left pad", (*_THREE, *_MQA_LLAMA)),
    HeadCase(
        "single label, one ignored",
        _SEQUENCES,
        "one class",
        "no mask",
        (*_THREE, ("problem_type", "single_label_classification")),
    ),
    HeadCase("multi label", _SEQUENCES, "several classes", "right pad", _THREE, gradients=True),
    HeadCase(
        "multi label, named",
        _SEQUENCES,
        "several classes",
        "no mask",
        (*_THREE, ("problem_type", "multi_label_classification")),
    ),
    HeadCase("token classification", _TOKENS, "class of a token", "right pad", _THREE, gradients=True),
    HeadCase(
        "token classification, no bias",
        _TOKENS,
        "class of a token",
        "left pad",
        (*_THREE, *_MQA_LLAMA, ("token_classification_bias", False)),
    ),
)


def head_inputs(case: HeadCase) -> dict[str, mx.array]:
    """Return the arguments of a head's forward pass, labels included, those that are None left out."""
    ids = token_ids(case.padding)
    if case.labels == "padding seen":
        ids[:, 7] = PAD_TOKEN
    inputs = {"input_ids": ids, "labels": _labels(case, ids)}
    mask, positions = attention_mask(case.padding), position_ids(case.padding)
    if mask is not None:
        inputs["attention_mask"] = mask
    if positions is not None:
        inputs["position_ids"] = positions
    return inputs


def _labels(case: HeadCase, ids: mx.array) -> mx.array:
    real = real_tokens(case.padding)
    by_kind = {
        "next token": mx.where(real, ids, IGNORE_INDEX),
        "padding seen": ids,
        "class of a token": mx.where(real & (ids % 7 != 0), ids % LABELS, IGNORE_INDEX),
        "classes": mx.array([2, 0]),
        "one class": mx.array([1, IGNORE_INDEX]),
        "several classes": mx.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]),
        "numbers": mx.array([0.75, -2.0]),
        "rows of numbers": mx.array([[0.5, -1.0, 2.0], [3.0, 0.25, -0.5]]),
    }
    return by_kind[case.labels]


def config_values(**overrides: object) -> dict[str, object]:
    """Return the contents of a `config.json`, as transformers v5 spells them."""
    family = "Llama" if overrides.get("model_type") == "llama" else "Helium"
    return {"architectures": [f"{family}ForCausalLM"], **BASE, **overrides}


def random_weight(name: str, shape: tuple[int, ...], gain: float = GAINS["float32"]) -> mx.array:
    """Return values for one tensor, float32, made from its name by integer arithmetic: the same on every backend."""
    seed = sum(ord(letter) * 31**position for position, letter in enumerate(name)) % 2**32
    words = mx.arange(math.prod(shape), dtype=mx.uint32) * mx.array(2654435761, mx.uint32) + mx.array(seed, mx.uint32)
    for shift, factor in ((16, 2246822519), (13, 3266489917), (16, 1)):
        words = (words ^ (words >> shift)) * mx.array(factor, mx.uint32)
    uniform = (words >> 8).astype(mx.float32) / 2**23 - 1
    if len(shape) < 2:
        return (0.5 * uniform + (0.0 if name.endswith("bias") else 1.0)).reshape(shape)
    return (uniform * (1.0 if "embed_tokens" in name else gain / math.sqrt(shape[1]))).reshape(shape)


def random_weights(
    config: HeliumConfig, architecture: Architecture = "ForCausalLM", gain: float = GAINS["float32"]
) -> dict[str, mx.array]:
    """Return every tensor of a checkpoint under its name on disk."""
    shapes = layout.tensor_shapes(config, unquantized, architecture)
    return {name: random_weight(name, shape, gain) for name, shape in shapes}


def write_checkpoint(
    directory: Path,
    values: dict[str, object],
    architecture: Architecture = "ForCausalLM",
    dtype: str = "float32",
    gain: float = GAINS["float32"],
) -> Path:
    """Write `config.json` and `model.safetensors`; return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    family = "Llama" if values["model_type"] == "llama" else "Helium"
    values = {**values, "architectures": [family + architecture], "dtype": dtype}
    config = HeliumConfig.from_dict(values)
    if config.num_labels != 2:
        # transformers writes labels rather than their number.
        del values["num_labels"]
        values |= {"id2label": config.to_dict()["id2label"], "label2id": config.label2id}
    (directory / CONFIG_FILE).write_text(json.dumps(values), encoding="utf-8")
    write_tensors(directory / "model.safetensors", random_weights(config, architecture, gain), dtype)
    return directory


def write_tensors(path: Path, tensors: dict[str, mx.array], dtype: str = "float32") -> None:
    """Write a safetensors file with every tensor in `dtype`."""
    converted = {name: tensor.astype(cast(mx.Dtype, getattr(mx, dtype))) for name, tensor in tensors.items()}
    with SafetensorsWriter(path, {name: (tensor.dtype, tensor.shape) for name, tensor in converted.items()}) as writer:
        for name, tensor in converted.items():
            writer.write(name, tensor)
