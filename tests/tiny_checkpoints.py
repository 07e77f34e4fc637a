"""Tiny checkpoints of the tests: `selfcheck_cases.BASE` with one thing changed, written as transformers writes them."""

from collections.abc import Callable
from pathlib import Path

from helium_mlx.diagnostics import selfcheck_cases
from helium_mlx.diagnostics.selfcheck_cases import BASE, config_values, random_weight, random_weights, write_tensors
from helium_mlx.model.helium import HeliumForCausalLM

__all__ = [
    "BASE",
    "CASES",
    "LLAMA",
    "config_values",
    "random_weight",
    "random_weights",
    "write_checkpoint",
    "write_tensors",
]

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

# What the fixture `load_case` gives: a model by the name of its case.
CaseLoader = Callable[[str], HeliumForCausalLM]


def write_checkpoint(directory: Path, **overrides: object) -> Path:
    """Write `config.json` and `model.safetensors` of a causal LM; return the directory."""
    values = config_values(**overrides)
    return selfcheck_cases.write_checkpoint(directory, values, dtype=str(values["dtype"]))
