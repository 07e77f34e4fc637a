"""Every key of a `config.json` that transformers reads for a Helium or a Llama, and what is done with it here.

A key is applied, refused or harmless. The refused ones would change what a model computes, in a way that this package
does not have, unless they are at a value that leaves them without effect. `tests/parity/test_config_keys.py` holds the
three lists against the transformers that is installed. Keys in none of them are read by nobody; they are kept for
writing back.
"""

from collections.abc import Callable, Mapping

from helium_mlx.errors import ConfigError, shown
from helium_mlx.files.names import WEIGHTS_FILE

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
    # transformers reads the weights from the file that it names. Never written back, as there.
    "transformers_weights": (lambda value: value in (None, WEIGHTS_FILE), f"{WEIGHTS_FILE!r}"),
}

# What transformers reads for plans of several devices, for training, for messages, for another way to the same numbers,
# or for models of other kinds; and what the class of a config has, which a file does not change.
HARMLESS = frozenset((
    "_attn_implementation", "_attn_implementation_internal", "_auto_class", "_commit_hash",
    "_experts_implementation", "_experts_implementation_internal", "_from_auto", "_from_pipeline", "_name_or_path",
    "_output_attentions", "_post_init_done", "_rope_type_labels", "allow_global_per_layer_attribute_access",
    "attn_implementation", "base_config_key", "base_model_ep_plan", "base_model_fsdp_plan", "base_model_pp_plan",
    "base_model_tp_plan", "cache_dir", "chain_hidden_post_norm", "chunk_size_feed_forward", "commit_message",
    "compile_config", "default_rope_type", "default_theta", "distributed_config", "embed_dim",
    "experts_implementation", "extra_config_files", "extra_files", "first_k_dense_replace", "force_download",
    "gradient_checkpointing", "ignore_keys_at_rope_validation", "init_std", "initializer_factor", "is_heterogeneous",
    "json", "local_files_only", "logits_mup_width_multiplier", "mlp_layer_types", "mtp_hidden_states_first",
    "mtp_layer_types", "mtp_mlp_layer_types", "mtp_per_layer_config", "name_or_path", "num_heads", "num_mtp_layers",
    "number_of_conv_states", "per_layer_attributes", "pretraining_tp", "proxies", "return_unused_kwargs", "revision",
    "sep_token_id", "serialize_explicit_per_layer_config", "sub_config_name", "sub_configs", "sub_configs_defaults",
    "subfolder", "token", "transformers_version", "trust_remote_code", "unpadded_vocab_size", "use_return_dict",
))  # fmt: skip


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
