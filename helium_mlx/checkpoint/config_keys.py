"""Every key of a `config.json` that transformers reads for a Helium or a Llama, and what is done with it here.

A key is applied, refused or harmless. The refused ones would change what a model computes, in a way that this package
does not have, unless they are at a value that leaves them without effect. `tests/parity/test_config_keys.py` holds the
three lists against the transformers that is installed. Keys in none of them are read by nobody; they are kept for
writing back.
"""

from collections.abc import Callable, Mapping

from helium_mlx.errors import ConfigError, shown

# Fields of `HeliumConfig`, and other spellings of them.
APPLIED = frozenset((
    "architectures", "attention_bias", "attention_dropout", "bos_token_id", "classifier_dropout", "dtype",
    "eos_token_id", "head_dim", "hidden_act", "hidden_dropout", "hidden_size", "id2label", "initializer_range",
    "intermediate_size", "label2id", "max_position_embeddings", "mlp_bias", "model_type", "num_attention_heads",
    "num_hidden_layers", "num_key_value_heads", "num_labels", "original_max_position_embeddings",
    "output_attentions", "output_hidden_states", "pad_token_id", "partial_rotary_factor", "problem_type",
    "quantization_config", "return_dict", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta",
    "tie_word_embeddings", "token_classification_bias", "torch_dtype", "use_cache", "vocab_size",
))  # fmt: skip


def _is_null(value: object) -> bool:
    return value is None


def _is_empty(value: object) -> bool:
    return value is None or value in ({}, [])


def _is_full_attention(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(kind in ("full_attention", "attention") for kind in value))


# key -> (which values leave it without effect, what those are in words)
REFUSED: dict[str, tuple[Callable[[object], bool], str]] = {
    "attention_chunk_size": (_is_null, "null"),
    "attribute_map": (_is_empty, "an empty object"),
    "configuration_files": (_is_empty, "an empty list"),
    "decoder": (_is_null, "null"),
    "fusion_config": (_is_null, "null"),
    "generator": (_is_null, "null"),
    "is_causal": (lambda value: value is True, "true"),
    "is_encoder_decoder": (lambda value: value is False, "false"),
    "kv_sharing_modes": (_is_null, "null"),
    "layer_types": (_is_full_attention, "a list of 'full_attention'"),
    "per_layer_config": (_is_empty, "null"),
    "sliding_window": (_is_null, "null"),
    "text_config": (_is_null, "null"),
    "text_encoder": (_is_null, "null"),
    "tie_last_hidden_states": (lambda value: value in (None, True), "true"),
    # transformers reads the weights from the file that it names.
    "transformers_weights": (_is_null, "null"),
}

# What transformers reads for plans of several devices, for training, for messages or for other models.
HARMLESS = frozenset(("pretraining_tp",))


def refuse_keys(values: Mapping[str, object]) -> None:
    """Raise ConfigError for a key of a `config.json` that would change what is computed, by its name and value."""
    for key, (is_without_effect, allowed) in REFUSED.items():
        if key in values and not is_without_effect(values[key]):
            raise ConfigError(
                f"{key} is {shown(values[key])}, which is not supported; it must be {allowed}: leave it out of "
                "config.json if the model was made without it"
            )


def model_type_of(values: Mapping[str, object]) -> object:
    """Return a config's `model_type`, or the family that its `architectures` names.

    Raises ConfigError where neither is there: RoPE differs between the two.
    """
    if "model_type" in values:
        return values["model_type"]
    names = values.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    for family in ("helium", "llama"):
        if name.lower().startswith((f"{family}for", f"{family}model")):
            return family
    raise ConfigError(
        f"model_type is missing, and architectures is {shown(names)}; add 'helium' (interleaved RoPE) or 'llama' "
        "(Helium-1-2b)"
    )
