"""Tiny checkpoints with weights that are random but the same on every machine, written as transformers writes them.

The weights come from integer arithmetic alone, so nothing needs to be stored; they are large enough that RoPE pairing,
eps and masks show in the logits.
"""

import json
import math
from pathlib import Path

import mlx.core as mx

from helium_mlx import layout
from helium_mlx.config import HeliumConfig
from helium_mlx.quantization import unquantized
from helium_mlx.safetensors_writer import SafetensorsWriter

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

LLAMA: dict[str, object] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}

# name -> what differs from BASE
CASES: dict[str, dict[str, object]] = {
    "helium-mha": {},
    "helium-gqa-bias": {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    "helium-mqa-tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "helium-prelu": {"hidden_act": "prelu"},
    "helium-xielu": {"hidden_act": "xielu"},
    "helium-gelu": {"hidden_act": "gelu"},
    "llama-mha": LLAMA,
    "llama-gqa-bias": {**LLAMA, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    "llama-mqa-tied": {**LLAMA, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "llama-wide-heads": {**LLAMA, "num_key_value_heads": 2, "head_dim": 32},
}


def config_values(**overrides: object) -> dict[str, object]:
    """The contents of a `config.json`, as transformers v5 spells them."""
    architecture = "LlamaForCausalLM" if overrides.get("model_type") == "llama" else "HeliumForCausalLM"
    return {"architectures": [architecture], **BASE, **overrides}


def random_weight(name: str, shape: tuple[int, ...]) -> mx.array:
    """Values for one tensor, float32, made from its name by integer arithmetic: the same on every backend."""
    seed = sum(ord(letter) * 31**position for position, letter in enumerate(name)) % 2**32
    words = mx.arange(math.prod(shape), dtype=mx.uint32) * mx.array(2654435761, mx.uint32) + mx.array(seed, mx.uint32)
    for shift, factor in ((16, 2246822519), (13, 3266489917), (16, 1)):
        words = (words ^ (words >> shift)) * mx.array(factor, mx.uint32)
    uniform = (words >> 8).astype(mx.float32) / 2**23 - 1
    if len(shape) < 2:
        return (0.5 * uniform + (0.0 if name.endswith("bias") else 1.0)).reshape(shape)
    gain = 1.0 if "embed_tokens" in name else 2.2 / math.sqrt(shape[1])
    return (gain * uniform).reshape(shape)


def random_weights(config: HeliumConfig) -> dict[str, mx.array]:
    """Every tensor of a causal-LM checkpoint, under its name on disk."""
    return {name: random_weight(name, shape) for name, shape in layout.tensor_shapes(config, unquantized)}


def write_checkpoint(directory: Path, **overrides: object) -> Path:
    """Write `config.json` and `model.safetensors`; return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    values = config_values(**overrides)
    (directory / "config.json").write_text(json.dumps(values))
    write_tensors(directory / "model.safetensors", random_weights(HeliumConfig.from_dict(values)), str(values["dtype"]))
    return directory


def write_tensors(path: Path, tensors: dict[str, mx.array], dtype: str = "float32") -> None:
    """Write a safetensors file with every tensor in `dtype`."""
    cast = {name: tensor.astype(getattr(mx, dtype)) for name, tensor in tensors.items()}
    with SafetensorsWriter(path, {name: (tensor.dtype, tensor.shape) for name, tensor in cast.items()}) as writer:
        for name, tensor in cast.items():
            writer.write(name, tensor)
