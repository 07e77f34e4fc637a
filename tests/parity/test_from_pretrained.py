"""`from_pretrained` beside transformers': what is loaded, what is said of it, and what other options come to."""

import itertools
import warnings
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tiny_checkpoints import config_values

from helium_mlx.model.helium import HeliumForCausalLM, HeliumForSequenceClassification, HeliumModel
from helium_mlx.model.pretrained import HeliumPreTrainedModel

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity
IDS = [[1, 5, 6, 7, 9, 2]]
CLASSES: dict[str, type[HeliumPreTrainedModel]] = {
    "HeliumModel": HeliumModel,
    "HeliumForCausalLM": HeliumForCausalLM,
    "HeliumForSequenceClassification": HeliumForSequenceClassification,
}
HABITS: list[dict[str, object]] = [
    {},
    {"dtype": "auto"},
    {"torch_dtype": torch.float32},
    {"dtype": "float32", "low_cpu_mem_usage": True},
    {"attn_implementation": "eager"},
    {"attn_implementation": "sdpa", "use_safetensors": True},
    {"token": False, "force_download": False, "local_files_only": True, "trust_remote_code": False},
    {"device_map": "cpu" if mx.default_device() == mx.cpu else "auto"},
]
CHANGES: list[dict[str, object]] = [
    {},
    {"num_hidden_layers": 1},
    {"vocab_size": 40, "ignore_mismatched_sizes": True},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    {"rms_norm_eps": 1e-2},
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    values = config_values(num_hidden_layers=2)
    directory = tmp_path_factory.mktemp("source")
    transformers.HeliumForCausalLM(transformers.HeliumConfig.from_dict(values)).save_pretrained(directory)
    return directory


@pytest.mark.parametrize(("habit", "change", "name"), itertools.product(HABITS, CHANGES, CLASSES), ids=str)
def test_the_same_is_loaded_and_said(
    source: Path, name: str, habit: dict[str, object], change: dict[str, object]
) -> None:
    options = {**habit, **change}
    theirs, said = getattr(transformers, name).from_pretrained(source, output_loading_info=True, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, told = CLASSES[name].from_pretrained(source, output_loading_info=True, **options)
    prefix = "model." if name == "HeliumModel" else ""

    def in_causal_lm(key: str) -> str:
        return key if key.startswith(("model.", "lm_head.", "score.")) else prefix + key

    assert {in_causal_lm(key) for key in told["missing_keys"]} == {in_causal_lm(key) for key in said["missing_keys"]}
    assert {in_causal_lm(key) for key in told["unexpected_keys"]} == {
        in_causal_lm(key) for key in said["unexpected_keys"]
    }
    assert {(in_causal_lm(key), found, expected) for key, found, expected in told["mismatched_keys"]} == {
        (in_causal_lm(key), tuple(found), tuple(expected)) for key, found, expected in said["mismatched_keys"]
    }
    if not told["missing_keys"] | told["mismatched_keys"]:
        with torch.no_grad():
            expected = theirs(torch.tensor(IDS))[0].float().numpy()
        np.testing.assert_allclose(np.array(ours(mx.array(IDS))[0]), expected, atol=2e-5)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dtypes_of_torch_are_taken(source: Path, dtype: object) -> None:
    model = HeliumForCausalLM.from_pretrained(source, torch_dtype=dtype)
    assert str(model.dtype).rpartition(".")[2] == str(dtype).rpartition(".")[2]


def test_a_config_object_stands_in(source: Path) -> None:
    theirs_config = transformers.HeliumConfig.from_pretrained(source, num_hidden_layers=1, rms_norm_eps=1e-3)
    theirs = transformers.HeliumForCausalLM.from_pretrained(source, config=theirs_config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours_config = HeliumForCausalLM.from_pretrained(source, num_hidden_layers=1, rms_norm_eps=1e-3).config
        ours = HeliumForCausalLM.from_pretrained(source, config=ours_config)
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(np.array(ours(mx.array(IDS)).logits), expected, atol=2e-5)
