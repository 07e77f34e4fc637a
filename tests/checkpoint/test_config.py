import copy
import dataclasses
import json
import pickle
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tiny_checkpoints import config_values

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.checkpoint.generation_config import GenerationConfig
from helium_mlx.errors import CheckpointError, ConfigError, KeywordError

V4 = {"rope_theta": 20000.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "torch.float16"}
V5 = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 20000.0}, "dtype": "float16"}


def without_rope(**values: object) -> dict[str, object]:
    base = config_values()
    del base["rope_parameters"], base["dtype"]
    return {**base, **values}


def test_defaults_describe_the_2b_preview() -> None:
    config = HeliumConfig()
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (24, 2560, 7040)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (20, 20, 128)
    assert (config.vocab_size, config.max_position_embeddings, config.rms_norm_eps) == (48000, 4096, 1e-8)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 100_000.0}
    assert config.interleaved_rope


def test_both_spellings_read_the_same() -> None:
    v4, v5 = HeliumConfig.from_dict(without_rope(**V4)), HeliumConfig.from_dict(without_rope(**V5))
    assert v4 == v5
    assert v5.dtype == "float16"
    assert v5.rope_parameters["factor"] == 2.0


def test_llama_takes_llamas_defaults() -> None:
    config = HeliumConfig.from_dict({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4})
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"]) == (1e-6, 10_000.0)
    assert (config.head_dim, config.num_key_value_heads) == (16, 4)
    assert not config.interleaved_rope


@pytest.mark.parametrize(
    "values",
    [
        {"rope_theta": 5.0, "rope_parameters": {"rope_type": "default", "rope_theta": 6.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "linear", "factor": 3.0}},
    ],
)
def test_conflicting_spellings_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="keep one"):
        HeliumConfig.from_dict(without_rope(**values))


def test_unknown_keys_are_kept_for_writing_back() -> None:
    values = config_values(future_key={"a": [1]}, transformers_version="9.9")
    written = HeliumConfig.from_dict(values).to_dict()
    assert written["future_key"] == {"a": [1]}
    assert written["transformers_version"] == "9.9"


def test_from_dict_leaves_its_argument_alone() -> None:
    values = without_rope(**V4)
    before = json.dumps(values)
    HeliumConfig.from_dict(values)
    assert json.dumps(values) == before


def test_written_config_reads_back_equal() -> None:
    config = HeliumConfig.from_dict(config_values(quantization={"group_size": 64, "bits": 4, "mode": "affine"}, x=1))
    again = HeliumConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict()
    assert config.to_dict()["rope_theta"] == 1000.0


def test_rope_scaling_is_written_for_mlx_lm_and_reads_back() -> None:
    parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    written = HeliumConfig.from_dict(config_values(rope_parameters=parameters)).to_dict()
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert HeliumConfig.from_dict(written).rope_parameters == parameters
    assert "rope_scaling" not in HeliumConfig().to_dict()


def test_conflicting_dtypes_are_refused() -> None:
    with pytest.raises(ConfigError, match="keep one"):
        HeliumConfig.from_dict(config_values(torch_dtype="float16", dtype="float32"))
    assert HeliumConfig.from_dict(config_values(torch_dtype="torch.float32", dtype="float32")).dtype == "float32"


REFUSED = [
    ("model_type", "mistral", "helium"),
    ("vocab_size", 0, "whole number"),
    ("hidden_size", -64, "whole number"),
    ("hidden_size", 64.0, "whole number"),
    ("hidden_size", True, "whole number"),
    ("hidden_size", "64", "whole number"),
    ("intermediate_size", 2**31, "whole number"),
    ("num_hidden_layers", None, "whole number"),
    ("num_attention_heads", 0, "whole number"),
    ("num_key_value_heads", 3, "must divide"),
    ("head_dim", 15, "even"),
    ("head_dim", 32, "must equal hidden_size"),
    ("max_position_embeddings", 0, "whole number"),
    ("rms_norm_eps", float("nan"), "finite"),
    ("rms_norm_eps", float("inf"), "finite"),
    ("rms_norm_eps", 0, "finite"),
    ("rms_norm_eps", 10**400, "finite"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 10**400}, "finite"),
    ("rms_norm_eps", "1e-8", "finite"),
    ("initializer_range", -0.1, "finite"),
    ("attention_dropout", 1.0, "below 1"),
    ("hidden_act", "swiglu", "silu"),
    ("hidden_act", ["silu"], "silu"),
    ("attention_bias", 1, "true or false"),
    ("mlp_bias", "no", "true or false"),
    ("tie_word_embeddings", None, "true or false"),
    ("use_cache", 0, "true or false"),
    ("bos_token_id", 96, "below vocab_size"),
    ("eos_token_id", [2, 96], "below vocab_size"),
    ("eos_token_id", -1, "token id"),
    ("pad_token_id", 1.5, "token id"),
    ("eos_token_id", [2] * 1001, "at most 1000"),
    ("num_labels", 100_001, "100000"),
    ("quantization", {"group_size": 64, "bits": 4.0}, "whole number"),
    ("quantization", {"model.embed_tokens": {"group_size": 64.0}}, "whole number"),
    ("rope_parameters", {"rope_type": "dynamic", "factor": 1e13}, "1e+12"),
    ("rope_parameters", {"rope_type": "linear", "factor": 1e-13}, "1e-12"),
    ("model_type", "x" * 1000, "helium"),
    ("model_type", "a\nb\x1b[2J", "helium"),
    ("dtype", "float64", "bfloat16"),
    ("dtype", 16, "bfloat16"),
    ("quantization", [4], "object"),
    ("rope_parameters", "default", "object"),
    ("rope_parameters", {"rope_type": "su", "rope_theta": 1e4}, "longrope"),
    ("rope_parameters", {"rope_type": "linear", "rope_theta": 1e4}, "factor"),
    ("rope_parameters", {"rope_type": "linear", "factor": 0}, "above 0"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": float("nan")}, "finite"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 0.5}, "larger than 1"),
    ("rope_parameters", {"rope_type": "default", "factor": 2.0}, "no meaning"),
    ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}, "no meaning"),
    ("rope_parameters", {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, "head_dim / 2"),
    ("rope_parameters", {"rope_type": "yarn", "factor": 2.0, "truncate": "yes"}, "true or false"),
    (
        "rope_parameters",
        {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0},
        "larger than",
    ),
]


@pytest.mark.parametrize(("name", "value", "allowed"), REFUSED, ids=[f"{n}={v}"[:80] for n, v, _ in REFUSED])
def test_a_field_out_of_range_is_refused_by_name_and_value(name: str, value: object, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HeliumConfig.from_dict(config_values(**{name: value}))
    message = str(caught.value)
    assert allowed in message
    assert message.isprintable()
    assert len(message) < 500


def test_head_times_dim_may_differ_from_hidden_size_in_llama_only() -> None:
    assert HeliumConfig.from_dict(config_values(model_type="llama", head_dim=32)).head_dim == 32


def test_a_foreign_quantization_is_refused() -> None:
    with pytest.raises(ConfigError, match="gptq"):
        HeliumConfig.from_dict(config_values(quantization_config={"quant_method": "gptq", "bits": 4}))


def test_mlx_lms_quantization_config_is_read() -> None:
    entry = {"group_size": 64, "bits": 4}
    assert HeliumConfig.from_dict(config_values(quantization_config=entry)).quantization == entry


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1e999x}', "[" * 100_000, '"text"', "\ufeff{}"])
def test_a_file_that_is_no_config_is_one_line_with_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        HeliumConfig.from_json_file(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"needs a config\.json"):
        HeliumConfig.from_json_file(tmp_path / "config.json")


def test_every_field_is_written() -> None:
    config = HeliumConfig(
        dtype="float32",
        quantization={"bits": 4},
        num_labels=3,
        problem_type="regression",
        classifier_dropout=0.5,
        hidden_dropout=0.5,
        token_classification_bias=False,
        output_hidden_states=True,
        output_attentions=True,
        return_dict=False,
    )
    # As in transformers, the number of labels is said by their names.
    assert {f.name for f in dataclasses.fields(HeliumConfig)} - {"extra", "num_labels"} <= config.to_dict().keys()


def test_what_a_causal_lm_has_no_use_for_is_not_written() -> None:
    written = HeliumConfig().to_dict().keys()
    assert not written & {"id2label", "label2id", "problem_type", "classifier_dropout", "return_dict"}


def test_labels_are_counted_by_their_names() -> None:
    config = HeliumConfig.from_dict(config_values(id2label={"0": "a", "1": "b", "2": "c"}))
    assert (config.num_labels, config.label2id) == (3, {"a": 0, "b": 1, "c": 2})
    assert HeliumConfig(num_labels=4).id2label[3] == "LABEL_3"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_labels": 0}, "num_labels is 0"),
        ({"num_labels": 3, "id2label": {"0": "a", "1": "b"}}, "keep one"),
        ({"id2label": {"0": "a", "2": "b"}}, "0, 1, and so on"),
        ({"id2label": ["a", "b"]}, "map numbers"),
        ({"problem_type": "ranking"}, "regression"),
        ({"classifier_dropout": 1.0}, "below 1"),
    ],
)
def test_bad_labels_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        HeliumConfig.from_dict(config_values(**values))


@pytest.mark.parametrize("name", ["num_labels", "id2label"])
def test_labels_assigned_later_stay_consistent(name: str) -> None:
    # As transformers' properties.
    config = HeliumConfig.from_dict(config_values(id2label={"0": "a", "1": "b", "2": "c"}))
    config.num_labels = 3
    assert config.id2label == {0: "a", 1: "b", 2: "c"}
    if name == "num_labels":
        config.num_labels = 4
        assert config.id2label == {i: f"LABEL_{i}" for i in range(4)}
    else:
        config.id2label = {0: "w", 1: "x", 2: "y", 3: "z"}
    assert config.num_labels == len(config.label2id) == 4
    assert HeliumConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="num_labels is 0"):
        config.num_labels = 0
    assert config.num_labels == 4


def test_hundreds_of_thousands_of_labels_are_refused_in_a_short_line() -> None:
    with pytest.raises(ConfigError, match="id2label has 300000 labels; at most 100000") as caught:
        HeliumConfig.from_dict(config_values(id2label={str(i): f"label {i}" for i in range(300_000)}))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "values",
    [
        {"rope_parameters": {"rope_type": "x" * 3_000_000}},
        {"rope_parameters": {"rope_type": "linear", "factor": "x" * 3_000_000}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "x" * 3_000_000: {}}},
        {"rope_parameters": {"rope_type": "longrope", "short_factor": "x" * 3_000_000, "long_factor": [1.0] * 8}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": "x" * 3_000_000}},
        {"rope_parameters": {"rope_theta": 1.0}, "rope_scaling": {"x" * 3_000_000: 1}},
        {"architectures": ["x" * 3_000_000], "is_causal": "x" * 3_000_000},
        {"id2label": "x" * 3_000_000},
        {"quantization_config": {"quant_method": "x" * 3_000_000}},
    ],
)
def test_no_message_quotes_megabytes(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        HeliumConfig.from_dict(config_values(**values))
    assert len(str(caught.value)) < 500


def written(directory: Path, **values: object) -> Path:
    (directory / "config.json").write_text(json.dumps(config_values(**values)))
    return directory


@pytest.mark.parametrize("family", ["helium", "llama"])
def test_a_missing_model_type_follows_from_the_architectures(tmp_path: Path, family: str) -> None:
    values = config_values(architectures=[f"{family.capitalize()}ForCausalLM"])
    del values["model_type"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    assert HeliumConfig.from_json_file(path).model_type == family
    for others in (["MistralForCausalLM"], [], None, "Helium", ["LlamaTokenizer"]):
        path.write_text(json.dumps(values | {"architectures": others}))
        with pytest.raises(ConfigError, match="model_type is missing, and architectures is"):
            HeliumConfig.from_json_file(path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 9.0, "factor": 2.0}}, "rope_parameters.factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "mscale": 1.0}}, "rope_parameters.mscale = 1.0"),
        ({"rope_parameters": None, "rope_scaling": {"factor": 2.0}}, "rope_scaling.factor"),
    ],
)
def test_rope_keys_without_effect_are_left_out_with_a_warning(
    tmp_path: Path, values: dict[str, object], said: str
) -> None:
    with pytest.warns(UserWarning, match=said):
        config = HeliumConfig.from_pretrained(written(tmp_path, **values))
    assert HeliumConfig.from_dict(config.to_dict()) == config


def test_rope_keys_with_an_effect_that_there_is_not_are_refused(tmp_path: Path) -> None:
    linear = {"rope_type": "linear", "factor": 2.0}
    for values in (
        {"rope_parameters": linear | {"partial_rotary_factor": 0.5}},
        {"rope_parameters": linear, "partial_rotary_factor": 0.5},
        {"rope_parameters": {"full_attention": linear}},
    ):
        with pytest.raises(ConfigError, match="has no meaning"):
            HeliumConfig.from_pretrained(written(tmp_path, **values))


def test_rope_scaling_that_says_less_than_rope_parameters_is_refused() -> None:
    # transformers takes rope_scaling for the whole, and its default for the rest.
    linear = {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(ConfigError, match="rope_parameters says 'rope_theta', and rope_scaling does not"):
        HeliumConfig.from_dict(without_rope(rope_parameters=linear | {"rope_theta": 5.0}, rope_scaling=linear))


def test_no_file_names_the_weights(tmp_path: Path) -> None:
    config = HeliumConfig.from_pretrained(written(tmp_path, transformers_weights=None))
    assert "transformers_weights" not in config.to_dict()
    with pytest.raises(ConfigError, match=r"transformers_weights is 'other\.safetensors'"):
        HeliumConfig.from_pretrained(written(tmp_path, transformers_weights="other.safetensors"))
    with pytest.raises(ConfigError, match="is_causal is False"):
        config.is_causal = False  # pyright: ignore[reportAttributeAccessIssue]


def test_numbers_of_numpy_are_plain_ones_and_saved_as_such(tmp_path: Path) -> None:
    plain: dict[str, object] = {
        "vocab_size": 100,
        "rms_norm_eps": 0.5,
        "tie_word_embeddings": True,
        "eos_token_id": [2, 3],
        "pad_token_id": 4,
        "num_labels": 3,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
        "extra": {"of_mine": [1, 0.5]},
    }
    numpy = HeliumConfig(
        vocab_size=np.int64(100),  # pyright: ignore[reportArgumentType]
        rms_norm_eps=np.float32(0.5),  # pyright: ignore[reportArgumentType]
        tie_word_embeddings=np.bool_(True),  # pyright: ignore[reportArgumentType]
        eos_token_id=[np.int32(2), np.int64(3)],  # pyright: ignore[reportArgumentType]
        pad_token_id=mx.array(4),  # pyright: ignore[reportArgumentType]
        num_labels=np.int64(3),  # pyright: ignore[reportArgumentType]
        rope_parameters={"rope_type": "linear", "rope_theta": np.float64(5000), "factor": np.float16(2)},
        extra={"of_mine": [np.uint8(1), np.float32(0.5)]},
    )
    assert numpy == HeliumConfig(**plain)  # pyright: ignore[reportArgumentType]
    assert (type(numpy.vocab_size), type(numpy.rms_norm_eps), type(numpy.num_labels)) == (int, float, int)
    numpy.save_pretrained(tmp_path)
    assert HeliumConfig.from_pretrained(tmp_path).to_dict() == numpy.to_dict()
    numpy.pad_token_id = np.int64(7)  # pyright: ignore[reportAttributeAccessIssue]
    assert type(numpy.pad_token_id) is int
    with pytest.raises(ConfigError, match=r"vocab_size is 100\.0; it must be a whole number"):
        HeliumConfig(vocab_size=np.float64(100))  # pyright: ignore[reportArgumentType]


def test_ids_of_labels_are_kept_and_written_where_they_are_set_alone(tmp_path: Path) -> None:
    config = HeliumConfig()
    config.label2id = {"NEG": 0, "POS": 1}
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["label2id"] == {"NEG": 0, "POS": 1}
    read = HeliumConfig.from_pretrained(tmp_path)
    assert (read.label2id, read.num_labels) == ({"NEG": 0, "POS": 1}, 2)
    # As with transformers' property, another number makes other names.
    read.num_labels = 3
    assert read.label2id == {f"LABEL_{i}": i for i in range(3)}
    for wrong in (3, ["a"], {"a": "x"}, {"a": 1.5}, {"a": True}):
        with pytest.raises(ConfigError, match=r"label2id is .*; it must map names to numbers"):
            config.label2id = wrong  # pyright: ignore[reportAttributeAccessIssue]
    assert config.label2id == {"NEG": 0, "POS": 1}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("hidden_act", "nonsense", "hidden_act is 'nonsense'; known are"),
        ("rms_norm_eps", "a", "rms_norm_eps is 'a'; it must be a finite number"),
        ("vocab_size", -1, "vocab_size is -1; it must be a whole number"),
        ("model_type", "mistral", "model_type is 'mistral'; known are"),
        ("use_cache", "no", "use_cache is 'no'; it must be true or false"),
        ("rope_parameters", {"rope_type": "linear"}, "rope_type 'linear' needs factor"),
        ("rope_theta", 5.0, "rope_theta is not a field of HeliumConfig; .*rope_parameters"),
        ("torch_dtype", "float16", "torch_dtype is not a field of HeliumConfig; .*dtype"),
        ("rms_norm_epsilon", 0.1, r"rms_norm_epsilon is not a field of HeliumConfig; .*extra\['rms_norm_epsilon'\]"),
    ],
)
def test_what_is_assigned_later_is_checked_too(name: str, value: object, said: str) -> None:
    config = HeliumConfig()
    with pytest.raises(ConfigError, match=said):
        setattr(config, name, value)
    assert config == HeliumConfig()


def test_what_is_assigned_later_is_saved(tmp_path: Path) -> None:
    config = HeliumConfig()
    # One after the other, they do not fit each other.
    config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim = 64, 4, 2, 16
    config.rope_parameters = {"rope_type": "linear", "factor": 2.0}
    config.transformers_version = "5"  # pyright: ignore[reportAttributeAccessIssue]
    assert config.transformers_version == "5"  # pyright: ignore[reportAttributeAccessIssue]
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(AttributeError, match="rms_norm_epsilon"):
        config.rms_norm_epsilon  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    config.save_pretrained(tmp_path)
    read = HeliumConfig.from_pretrained(tmp_path)
    assert read.to_dict() == config.to_dict()
    assert (read.hidden_size, read.rope_parameters["factor"], read.extra["transformers_version"]) == (64, 2.0, "5")
    config.head_dim = 8
    with pytest.raises(ConfigError, match=r"num_attention_heads \* head_dim"):
        config.save_pretrained(tmp_path)
    assert HeliumConfig.from_pretrained(tmp_path) == read


def test_a_config_is_made_of_what_it_is_written_as(tmp_path: Path) -> None:
    config = HeliumConfig.from_dict(config_values(dtype="bfloat16", num_labels=3))
    again = HeliumConfig(**config.to_dict())  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert again.to_dict() == config.to_dict()
    config.to_json_file(tmp_path / "any.json")
    assert HeliumConfig.from_json_file(tmp_path / "any.json").to_dict() == config.to_dict()
    assert json.loads(config.to_json_string()) == config.to_dict()
    with pytest.raises(CheckpointError, match="cannot be written"):
        config.to_json_file(tmp_path / "nowhere" / "config.json")


def test_older_spellings_are_keywords_too() -> None:
    assert HeliumConfig(rope_theta=5.0).rope_parameters == {"rope_type": "default", "rope_theta": 5.0}  # pyright: ignore[reportCallIssue]
    scaled = HeliumConfig(rope_scaling={"rope_type": "linear", "factor": 2.0}, torch_dtype="torch.float16")  # pyright: ignore[reportCallIssue]
    assert scaled.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 100_000.0}
    assert scaled.dtype == "float16"
    assert HeliumConfig(sliding_window=None, extra={"note": 1}).extra["note"] == 1  # pyright: ignore[reportCallIssue]
    with pytest.raises(ConfigError, match="sliding_window is 3, which is not supported"):
        HeliumConfig(sliding_window=3)  # pyright: ignore[reportCallIssue]


def test_a_misspelled_keyword_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        KeywordError, match=r"HeliumConfig\(\) has no argument hidden_sizes; did you mean hidden_size\?"
    ):
        HeliumConfig(hidden_sizes=3)  # pyright: ignore[reportCallIssue]


def test_several_fields_are_assigned_at_once() -> None:
    config = HeliumConfig()
    config.update({"use_cache": False, "num_labels": 5})
    assert (config.use_cache, config.num_labels, len(config.id2label)) == (False, 5, 5)
    with pytest.raises(ConfigError, match="use_cash is not a field"):
        config.update({"use_cash": False})


def test_values_are_replaced_as_a_config_is_read() -> None:
    assert HeliumConfig.from_pretrained("demo", num_labels=4, local_files_only=True).num_labels == 4


def test_settings_of_generation_are_read_written_and_updated(tmp_path: Path) -> None:
    config = GenerationConfig(max_new_tokens=7, top_p=0.5, others={"watermark": None, "note": "kept"})
    config.save_pretrained(tmp_path / "new")
    again = GenerationConfig.from_pretrained(tmp_path / "new", top_k=3)
    assert (again.max_new_tokens, again.top_p, again.top_k, again.others) == (7, 0.5, 3, {"note": "kept"})
    assert again.update(top_k=9, colour="red") == {"colour": "red"}
    assert again.top_k == 9
    with pytest.raises(CheckpointError, match=r"generation_config\.json: cannot be read"):
        GenerationConfig.from_pretrained(tmp_path)
