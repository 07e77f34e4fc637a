"""Checkpoints that continue each token with another that is prescribed: for tests of what becomes of given tokens."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_map
from tokenizer_samples import DEMO

from helium_mlx import HeliumConfig, HeliumForCausalLM

WIDTH = 128
FIRST_BYTE = 106


def bytes_of(text: str) -> list[int]:
    """The demo's ids of a text's bytes."""
    return [FIRST_BYTE + byte for byte in text.encode()]


def write_scripted_checkpoint(directory: Path, following: Mapping[int, int]) -> Path:
    """Write a model whose layers add nothing, and whose head turns a token's own direction into that of the next."""
    config = HeliumConfig(
        vocab_size=2048, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=WIDTH // 2, max_position_embeddings=4096, pad_token_id=3, bos_token_id=1,
        eos_token_id=2, rms_norm_eps=1e-8,
    )  # fmt: skip
    model = HeliumForCausalLM(config)
    model.update(tree_map(lambda p: mx.zeros_like(p) if p.ndim > 1 else mx.ones_like(p), model.parameters()))
    embeddings, head = mx.zeros((2048, WIDTH)), mx.zeros((2048, WIDTH))
    for place, (token, after) in enumerate(following.items()):
        embeddings[token, place] = WIDTH**0.5
        head[after, place] = 20.0
    model.model.embed_tokens.weight, model.lm_head.weight = embeddings, head
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(DEMO / name, directory / name)
    return directory
