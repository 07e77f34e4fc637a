"""The tensors of a checkpoint: transformers' names and shapes on disk, and the merged projections in memory.

In memory q/k/v are one matrix, and so are gate/up: a third of the matrix products, and one RoPE call for queries and
keys together. Files have the parts; merging and splitting happen in this file only. Parts that are
quantized differently stay apart.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import mlx.core as mx

from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.checkpoint.quantization_settings import ModuleSettings, QuantizationSettings

# module path inside a layer -> the parts that it is merged from
MERGED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
_SUFFIXES = ("weight", "scales", "biases", "bias")
Shapes = dict[str, tuple[int, ...]]


def projection_sizes(config: HeliumConfig) -> dict[str, tuple[int, int, bool]]:
    """Return (rows, columns, has a bias) of each projection of a layer, keyed by its path inside the layer."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    return {
        "self_attn.q_proj": (queries, hidden, config.attention_bias),
        "self_attn.k_proj": (keys, hidden, config.attention_bias),
        "self_attn.v_proj": (keys, hidden, config.attention_bias),
        "self_attn.o_proj": (hidden, queries, config.output_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }


def layer_prefix(index: int) -> str:
    """Return the path of a decoder layer inside `HeliumForCausalLM`."""
    return f"model.layers.{index}"


def parts_of(path: str) -> tuple[str, ...]:
    """Return the paths on disk of what a module in memory was merged from; its own where it was not."""
    for whole, parts in MERGED.items():
        if path.endswith(f".{whole}"):
            return tuple(path.removesuffix(whole) + part for part in parts)
    return (path,)


Architecture = Literal["Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification"]
"""A transformers class without the name of its family, Helium or Llama."""


# What a decoder's tensors begin with inside of a model with a head, and what a head's do.
BODY_PREFIX = "model."
HEAD_PREFIXES = ("lm_head.", "score.")


def architecture_of(config: HeliumConfig) -> Architecture:
    """Return the class that a config's `architectures` names, a causal LM where it names none of ours."""
    names = config.extra.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    return next(
        (a for a in get_args(Architecture) if name.removeprefix("Helium").removeprefix("Llama") == a), "ForCausalLM"
    )


def head_shapes(config: HeliumConfig, architecture: Architecture) -> Shapes:
    """Return the tensors that `architecture` has on top of the decoder, unquantized."""
    if architecture == "ForCausalLM":
        return {} if config.tie_word_embeddings else {"lm_head.weight": (config.vocab_size, config.hidden_size)}
    if architecture == "Model":
        return {}
    score: Shapes = {"score.weight": (config.num_labels, config.hidden_size)}
    if architecture == "ForTokenClassification" and config.token_classification_bias:
        score["score.bias"] = (config.num_labels,)
    return score


def name_on_disk(name: str, architecture: Architecture) -> str:
    """Return what the checkpoint of `architecture` calls a causal LM's tensor; a bare decoder's lack the `model.`."""
    return name.removeprefix(BODY_PREFIX) if architecture == "Model" else name


def weight_shapes(
    config: HeliumConfig, architecture: Architecture = "ForCausalLM"
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the modules that can be quantized, as (path in a causal LM, (rows, columns)), in forward order."""
    yield "model.embed_tokens", (config.vocab_size, config.hidden_size)
    for index in range(config.num_hidden_layers):
        for path, (rows, columns, _) in projection_sizes(config).items():
            yield f"{layer_prefix(index)}.{path}", (rows, columns)
    if architecture == "ForCausalLM" and not config.tie_word_embeddings:
        yield "lm_head", (config.vocab_size, config.hidden_size)


def tensor_shapes(
    config: HeliumConfig, settings: ModuleSettings, architecture: Architecture = "ForCausalLM"
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every tensor of a checkpoint, as (name in a causal LM, shape on disk)."""
    sizes = projection_sizes(config)
    if architecture != "ForCausalLM":
        yield from head_shapes(config, architecture).items()
    for path, (rows, columns) in weight_shapes(config, architecture):
        own = settings(path)
        shapes: Shapes = {"weight": (rows, columns)} if own is None else {**own.packed_shapes(rows, columns)}
        if any(has_bias and path.endswith(part) for part, (_, _, has_bias) in sizes.items()):
            shapes["bias"] = (rows,)
        yield from ((f"{path}.{suffix}", shape) for suffix, shape in shapes.items())
    for index in range(config.num_hidden_layers):
        prefix = layer_prefix(index)
        yield f"{prefix}.input_layernorm.weight", (config.hidden_size,)
        yield f"{prefix}.post_attention_layernorm.weight", (config.hidden_size,)
        yield from ((f"{prefix}.mlp.act_fn.{name}", shape) for name, shape in _activation_shapes(config).items())
    yield "model.norm.weight", (config.hidden_size,)


def _activation_shapes(config: HeliumConfig) -> Shapes:
    if config.hidden_act == "prelu":
        return {"weight": (1,)}
    if config.hidden_act == "xielu":
        return {"alpha_p": (1,), "alpha_n": (1,), "beta": (), "eps": ()}
    return {}


def shared_settings(
    settings: ModuleSettings, layer: str, parts: tuple[str, ...]
) -> tuple[bool, QuantizationSettings | None]:
    """Return whether the parts of a projection can be merged in `layer`, and the settings that they share."""
    distinct = {settings(f"{layer}.{part}") for part in parts}
    return len(distinct) == 1, distinct.pop()


def merge_projections(
    weights: Mapping[str, mx.array], config: HeliumConfig, settings: ModuleSettings
) -> dict[str, mx.array]:
    """Return the tensors under their names in memory: q/k/v and gate/up stacked along their rows."""
    merged = dict(weights)
    for index in range(config.num_hidden_layers):
        layer = layer_prefix(index)
        for whole, parts in MERGED.items():
            if not shared_settings(settings, layer, parts)[0]:
                continue
            for suffix in _SUFFIXES:
                names = [f"{layer}.{part}.{suffix}" for part in parts]
                if names[0] in merged:
                    merged[f"{layer}.{whole}.{suffix}"] = mx.concatenate([merged.pop(name) for name in names])
    return merged


def split_projections(weights: Mapping[str, mx.array], config: HeliumConfig) -> dict[str, mx.array]:
    """Return the tensors under their names on disk: the inverse of `merge_projections`."""
    split = dict(weights)
    sizes = projection_sizes(config)
    for index in range(config.num_hidden_layers):
        layer = layer_prefix(index)
        for whole, parts in MERGED.items():
            ends = [sum(sizes[part][0] for part in parts[: i + 1]) for i in range(len(parts) - 1)]
            for suffix in _SUFFIXES:
                tensor = split.pop(f"{layer}.{whole}.{suffix}", None)
                if tensor is not None:
                    pieces = mx.split(tensor, ends)
                    split |= {f"{layer}.{part}.{suffix}": piece for part, piece in zip(parts, pieces, strict=True)}
    return split


def architecture_name(config: HeliumConfig, architecture: layout.Architecture) -> str:
    """Return transformers' name of a class."""
    return ("Helium" if config.model_type == "helium" else "Llama") + architecture
