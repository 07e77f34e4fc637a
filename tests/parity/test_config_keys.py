"""The table of configuration keys against the transformers that is installed: it is whole, and it is right."""

import inspect
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import mlx.core as mx  # noqa: E402
from tiny_checkpoints import config_values, write_checkpoint  # noqa: E402
from transformers import (  # noqa: E402
    cache_utils,
    configuration_utils,
    masking_utils,
    modeling_layers,
    modeling_rope_utils,
    modeling_utils,
)
from transformers.models.helium import modeling_helium  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402
from transformers.utils import generic, output_capturing  # noqa: E402

from helium_mlx.checkpoint.checkpoint import open_checkpoint  # noqa: E402
from helium_mlx.checkpoint.config import HeliumConfig  # noqa: E402
from helium_mlx.checkpoint.config_keys import APPLIED, HARMLESS, REFUSED  # noqa: E402
from helium_mlx.checkpoint.layout import architecture_of  # noqa: E402
from helium_mlx.errors import ConfigError  # noqa: E402
from helium_mlx.model.loading import load_model  # noqa: E402

pytestmark = pytest.mark.parity

CONFIGS = (transformers.HeliumConfig, transformers.LlamaConfig)
READERS = (
    cache_utils,
    configuration_utils,
    generic,
    masking_utils,
    modeling_helium,
    modeling_layers,
    modeling_llama,
    modeling_rope_utils,
    modeling_utils,
    output_capturing,
)
CONFIG_FILES = (configuration_utils, modeling_rope_utils)
READ = re.compile(r"""(?:getattr|hasattr)\(\s*\w*\.?\w*config,\s*["'](\w+)["']|\bconfig\.([a-z]\w*)\b(?!\()""")
READ_BY_CONFIGS = re.compile(
    r"""(?:getattr|hasattr)\(\s*(?:self|text_config),\s*["'](\w+)["']|["'](\w+)["'] (?:not )?in config_dict"""
    r"""|(?<!_)kwargs\.pop\(["'](\w+)["'], (?:None|False|"")\)"""
)
FAMILIES = ("helium", "llama")
IDS = [[1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 11, 12]]


def keys_of(config: object) -> set[str]:
    """What a config has that a `config.json` could set: its fields, attributes and properties."""
    return {name for name in dir(config) if not name.startswith("__") and not is_method(config, name)}


def is_method(config: object, name: str) -> bool:
    return callable(getattr(type(config), name, None))


def keys_read() -> set[str]:
    """What code that runs for a Helium or a Llama reads from a config by name."""
    found = {
        next(filter(None, groups if isinstance(groups, tuple) else (groups,)))
        for pattern, modules in ((READ, READERS), (READ_BY_CONFIGS, CONFIG_FILES))
        for module in modules
        for groups in pattern.findall(inspect.getsource(module))
    }
    return {name for name in found if not any(is_method(config(), name) for config in CONFIGS)}


@pytest.mark.parametrize("config", CONFIGS)
def test_every_key_of_transformers_configs_is_in_the_table(config: type) -> None:
    assert keys_of(config()) - APPLIED - HARMLESS - REFUSED.keys() == set()


def test_every_key_that_transformers_reads_is_in_the_table() -> None:
    assert keys_read() - APPLIED - HARMLESS - REFUSED.keys() == set()


def of_transformers(directory: Path) -> np.ndarray:
    """Logits of one pass, and of the same ids cut into two with a cache."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        ids = torch.tensor(IDS)
        first = model(ids[:, :8], use_cache=True)
        rest = model(ids[:, 8:], past_key_values=first.past_key_values, use_cache=True)
        return torch.cat([model(ids).logits, first.logits, rest.logits], dim=1).numpy()


def of_this_package(directory: Path) -> np.ndarray:
    logits = np.array(load_model(directory, dtype="float32")(mx.array(IDS)).logits)
    return np.concatenate([logits, logits], axis=1)


def rewritten(directory: Path, **values: object) -> Path:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return directory


def relative_error(x: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(x - reference).max() / np.abs(reference).max())


@pytest.fixture(params=FAMILIES)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, model_type=request.param, num_hidden_layers=2)


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_a_refused_key_is_refused_by_name_unless_it_has_no_effect(directory: Path, key: str) -> None:
    is_without_effect, _ = REFUSED[key]
    values = (None, True, False, 3, "x", ["sliding_attention"] * 2, {"a": 1})
    reference = of_transformers(directory)
    for value in values:
        rewritten(directory, **{key: value})
        if is_without_effect(value):
            assert relative_error(of_this_package(directory), reference) <= 1e-5
            continue
        with pytest.raises(ConfigError, match=rf"config\.json: {key} is "):
            open_checkpoint(directory)


@pytest.mark.parametrize(
    ("key", "value"), [("is_causal", False), ("is_causal", None), ("sliding_window", 3), ("attention_chunk_size", 3)]
)
def test_transformers_computes_otherwise_with_a_refused_key(directory: Path, key: str, value: object) -> None:
    reference = of_transformers(directory)
    assert relative_error(of_transformers(rewritten(directory, **{key: value})), reference) > 0.01


@pytest.mark.parametrize("value", [3, {"full_attention": {"a": 1}}])
def test_a_harmless_key_changes_nothing_in_transformers(directory: Path, value: object) -> None:
    reference, original = of_transformers(directory), (directory / "config.json").read_text()
    # These fetch and run code of the Hub where they are text.
    for key in sorted(HARMLESS - {key for key in HARMLESS if key.endswith("_implementation")}):
        (directory / "config.json").write_text(original)
        try:
            logits = of_transformers(rewritten(directory, **{key: value}))
        except Exception:
            continue  # What it cannot open, it does not compute otherwise.
        assert np.array_equal(logits, reference), key


# Another value than in the checkpoint, of every applied key.
EXAMPLES: dict[str, object] = {
    "architectures": ["HeliumModel"],
    "attention_bias": True,
    "attention_dropout": 0.5,
    "bos_token_id": 7,
    "classifier_dropout": 0.5,
    "dtype": "bfloat16",
    "eos_token_id": 9,
    "head_dim": 8,
    "hidden_act": "relu",
    "hidden_dropout": 0.5,
    "hidden_size": 32,
    "id2label": {"0": "a"},
    "initializer_range": 0.5,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "mlp_bias": True,
    "model_type": "mistral",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "num_labels": 4,
    "original_max_position_embeddings": 16,
    "output_attentions": True,
    "output_hidden_states": True,
    "pad_token_id": 8,
    "partial_rotary_factor": 0.5,
    "problem_type": "regression",
    "quantization_config": {"group_size": 32, "bits": 4},
    "return_dict": False,
    "rms_norm_eps": 0.5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
    "rope_scaling": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1000.0},
    "rope_theta": 50.0,
    "tie_word_embeddings": True,
    "token_classification_bias": False,
    "torch_dtype": "bfloat16",
    "use_cache": False,
    "vocab_size": 50,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1000.0, "original_max_position_embeddings": 8}
# Made of others, and read by nobody.
DERIVED = {"label2id"}


@pytest.mark.parametrize("key", sorted(APPLIED - DERIVED))
def test_an_applied_key_changes_what_is_read_or_is_an_error(key: str) -> None:
    values = config_values(rope_parameters=YARN)
    if key in ("rope_scaling", "rope_theta"):
        del values["rope_parameters"]
    if key == "torch_dtype":
        del values["dtype"]
    unchanged = HeliumConfig.from_dict(values)
    try:
        changed = HeliumConfig.from_dict(values | {key: EXAMPLES[key]})
    except ConfigError as error:
        assert key in str(error) or key in ("head_dim", "hidden_size", "num_attention_heads", "vocab_size")
        return
    if key == "architectures":
        assert architecture_of(changed) != architecture_of(unchanged)
    else:
        assert replace(changed, extra={}) != replace(unchanged, extra={})


SCALED: dict[str, dict[str, object]] = {
    "yarn": {"factor": 4.0},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {"short_factor": [1 + 0.1 * i for i in range(8)], "long_factor": [1 + 0.5 * i for i in range(8)]},
}
CONTEXT = "original_max_position_embeddings"


@pytest.mark.parametrize("rope_type", SCALED)
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("nested", [None, 64])
@pytest.mark.parametrize("at_the_top", [None, 4])
def test_the_original_context_counts_where_transformers_looks_for_it(
    directory: Path, rope_type: str, spelling: str, nested: int | None, at_the_top: int | None
) -> None:
    parameters: dict[str, object] = {"rope_type": rope_type, **SCALED[rope_type]}
    parameters |= {} if nested is None else {CONTEXT: nested}
    values: dict[str, object] = {"rope_parameters": None, spelling: parameters, "rope_theta": 1000.0}
    rewritten(directory, **values, **({} if at_the_top is None else {CONTEXT: at_the_top}))
    reference = of_transformers(directory)
    # One pass of 12 tokens; in two passes longrope changes its factors between them.
    error = relative_error(of_this_package(directory)[:, :12], reference[:, :12])
    assert error <= 1e-5


@pytest.mark.parametrize(
    "values",
    [
        {"rms_norm_eps": 0.5},
        {"hidden_act": "relu"},
        {"rope_parameters": None, "rope_theta": 50.0},
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 3.0}, "rope_theta": 50.0},
        {"rope_parameters": None, "rope_scaling": {"factor": 3.0}, "rope_theta": 50.0},
        {"rope_parameters": None},
        {"rope_parameters": {"rope_type": "default", "factor": 3.0, "rope_theta": 50.0}},
        {"rope_parameters": {"rope_type": "linear", "type": "dynamic", "factor": 3.0, "rope_theta": 50.0}},
        {"rope_parameters": None, "rope_scaling": {"rope_type": "yarn", "type": "linear", "factor": 3.0}},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5}},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "mscale": 2.0, "rope_theta": 50.0}},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_numbers_are_transformers_with_other_values(directory: Path, values: dict[str, object]) -> None:
    unchanged = of_transformers(directory)
    reference = of_transformers(rewritten(directory, **values))
    assert relative_error(of_this_package(directory), reference) <= 1e-5
    if "partial_rotary_factor" not in values:
        assert relative_error(unchanged, reference) > 1e-3


@pytest.mark.parametrize("case", ["another head", "the same head", "only the head"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tied_pairs_are_transformers(directory: Path, case: str) -> None:
    rewritten(directory, tie_word_embeddings=True)
    path = directory / "model.safetensors"
    tensors = cast("dict[str, mx.array]", mx.load(str(path)))
    if case == "the same head":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    elif case == "only the head":
        del tensors["model.embed_tokens.weight"]
    mx.eval(tensors)
    mx.save_safetensors(str(path), tensors, {"format": "pt"})
    assert relative_error(of_this_package(directory), of_transformers(directory)) <= 1e-5
    assert open_checkpoint(directory).config.tie_word_embeddings == (case != "another head")
