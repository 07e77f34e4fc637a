"""What `from_pretrained` takes by habit, does, and refuses; against transformers in tests/parity."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hub_standin import COMMIT, serve
from hub_standin.client import environment
from processes import run_code
from tiny_checkpoints import config_values

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import ArgumentError, CheckpointError, ConfigError, HeliumError, KeywordError, UsageError
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.model.helium import HeliumForCausalLM, HeliumModel

IDS = mx.array([[1, 5, 6, 7]])
HABITS: list[dict[str, object]] = [
    {"dtype": "auto"},
    {"torch_dtype": "auto"},
    {"device_map": "auto"},
    {"device_map": "balanced"},
    {"device_map": {"": "auto"}},
    {"device_map": mx.default_device()},
    {"attn_implementation": "eager"},
    {"attn_implementation": "sdpa"},
    {"low_cpu_mem_usage": True, "use_safetensors": True, "weights_only": True, "offload_folder": "x"},
    {"trust_remote_code": False, "quantization_config": None, "load_in_4bit": False, "proxies": {}, "tp_plan": None},
    {"token": "hf_x", "cache_dir": "anywhere", "local_files_only": True, "subfolder": "", "revision": None},
]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    HeliumForCausalLM(HeliumConfig.from_dict(config_values(num_hidden_layers=3))).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize("options", HABITS, ids=str)
def test_what_changes_nothing_is_taken(tiny: Path, options: dict[str, object]) -> None:
    model = HeliumForCausalLM.from_pretrained(tiny, **options)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert mx.array_equal(model(IDS).logits, HeliumForCausalLM.from_pretrained(tiny)(IDS).logits)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trust_remote_code": True}, "trust_remote_code is True, .*no code from a checkpoint is run"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is .*helium_mlx.convert"),
        ({"load_in_8bit": True}, "load_in_8bit is True, .*q_bits=8"),
        ({"device_map": "cuda:1"}, "device_map is 'cuda:1'; expected 'auto'"),
        ({"device_map": {"": "auto", "lm_head": "disk"}}, "device_map is {"),
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation is 'flash_attention_2'; expected eager or"),
        ({"use_safetensors": False}, "use_safetensors is False"),
        ({"config": 3}, "config is 3; expected a HeliumConfig"),
        ({"proxies": {"https": "x"}}, "proxies cannot be given.*HTTPS_PROXY"),
        ({"token": 3}, "token is int; it must be text, True, False or None"),
        ({"cache_dir": ""}, "cache_dir is ''; name a directory"),
        ({"local_files_only": "yes"}, "local_files_only is 'yes'"),
        ({"local_files_only": True, "force_download": True}, "force_download asks the Hub"),
        ({"ignore_mismatched_sizes": 1}, "ignore_mismatched_sizes is 1"),
        ({"dtype": "int8"}, "dtype is 'int8'; known are"),
        ({"dtypes": "bfloat16"}, "dtypes is neither an option of from_pretrained here nor a field"),
    ],
    ids=str,
)
def test_what_is_not_done_here_is_refused_by_name(tiny: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises((ArgumentError, UsageError, ConfigError), match=said) as refusal:
        HeliumForCausalLM.from_pretrained(tiny, **options)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert "\n" not in str(refusal.value)


def test_a_secret_is_not_repeated(tiny: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        HeliumForCausalLM.from_pretrained(tiny, token=["hf_secret"])  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert "hf_secret" not in str(refusal.value)


@pytest.mark.parametrize("dtype", ["float16", mx.float16, "torch.float16", SimpleNamespace], ids=str)
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_dtype_is_a_name_or_mlxs_or_torchs(tiny: Path, name: str, dtype: object) -> None:
    class TorchDtype:
        def __repr__(self) -> str:
            return "torch.float16"

    dtype = TorchDtype() if dtype is SimpleNamespace else dtype
    model = HeliumForCausalLM.from_pretrained(tiny, **{name: dtype})  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert model.dtype == mx.float16


def test_fewer_layers_are_read_when_fewer_are_asked_for(tiny: Path) -> None:
    whole = HeliumForCausalLM.from_pretrained(tiny)
    with pytest.warns(UserWarning, match=r"model\.layers\.1\..* left out"):
        model = HeliumForCausalLM.from_pretrained(tiny, num_hidden_layers=1)
    assert len(model.model.layers) == model.config.num_hidden_layers == 1
    kept, before = model.tensors(), whole.tensors()
    assert all(mx.array_equal(tensor, before[name]) for name, tensor in kept.items())
    assert {name.split(".")[2] for name in kept if ".layers." in name} == {"0"}


def test_more_layers_than_there_are_is_an_error(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tensors that are missing: model\.layers\.3\."):
        HeliumForCausalLM.from_pretrained(tiny, num_hidden_layers=4)


def test_fewer_layers_of_a_quantized_checkpoint_and_of_the_bare_decoder(tiny: Path, tmp_path: Path) -> None:
    packed = HeliumForCausalLM.from_pretrained(tiny)
    nn.quantize(packed, group_size=32, bits=4)
    packed.save_pretrained(tmp_path / "quantized")
    with pytest.warns(UserWarning, match="left out"):
        model = HeliumForCausalLM.from_pretrained(tmp_path / "quantized", num_hidden_layers=2)
    assert len(model.model.layers) == 2
    HeliumModel.from_pretrained(tiny).save_pretrained(tmp_path / "bare")
    with pytest.warns(UserWarning, match=r"layers\.2\..* left out"):
        assert len(HeliumModel.from_pretrained(tmp_path / "bare", num_hidden_layers=2).layers) == 2


def test_a_config_stands_in_for_the_checkpoints(tiny: Path, tmp_path: Path) -> None:
    config = HeliumConfig.from_pretrained(tiny)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 77.0}
    expected = HeliumForCausalLM.from_pretrained(tiny, rope_parameters=config.rope_parameters)
    config.save_pretrained(tmp_path / "config")
    for given in (config, tmp_path / "config", str(tmp_path / "config")):
        model = HeliumForCausalLM.from_pretrained(tiny, config=given)
        assert model.config.rope_parameters["rope_theta"] == 77.0
        assert mx.array_equal(model(IDS).logits, expected(IDS).logits)
    assert HeliumForCausalLM.from_pretrained(tiny, config=config, use_cache=False).config.use_cache is False


def test_tensors_of_another_shape_are_initialised_where_that_is_asked_for(tiny: Path) -> None:
    smaller = HeliumConfig.from_pretrained(tiny).vocab_size // 2
    with pytest.raises(CheckpointError, match="tensor shapes do not fit"):
        HeliumForCausalLM.from_pretrained(tiny, vocab_size=smaller)
    with pytest.warns(UserWarning, match=r"embed_tokens\.weight is \[.*so initialised"):
        model, info = HeliumForCausalLM.from_pretrained(
            tiny, vocab_size=smaller, ignore_mismatched_sizes=True, output_loading_info=True
        )
    assert model(IDS).logits.shape[-1] == smaller
    assert {name for name, _, _ in info["mismatched_keys"]} == {"model.embed_tokens.weight", "lm_head.weight"}
    kept = HeliumForCausalLM.from_pretrained(tiny).model.norm.weight
    assert mx.array_equal(model.model.norm.weight, kept)


def test_a_matrix_of_a_merged_projection_may_have_another_shape(tiny: Path) -> None:
    with pytest.warns(UserWarning, match=r"k_proj\.weight is \["):
        model, info = HeliumForCausalLM.from_pretrained(
            tiny, num_key_value_heads=1, ignore_mismatched_sizes=True, output_loading_info=True
        )
    whole = HeliumForCausalLM.from_pretrained(tiny)
    rows = whole.config.num_attention_heads * whole.config.head_dim
    name = "model.layers.0.self_attn.qkv_proj.weight"
    assert mx.array_equal(model.tensors()[name][:rows], whole.tensors()[name][:rows])
    assert all(name.split(".")[-2] in ("k_proj", "v_proj") for name, _, _ in info["mismatched_keys"])


@pytest.mark.parametrize("what", ["nothing", "all"])
def test_loading_info_is_transformers(tiny: Path, what: str) -> None:
    more: dict[str, object] = {"num_hidden_layers": 2} if what == "all" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, info = HeliumForCausalLM.from_pretrained(tiny, output_loading_info=True, **more)
    assert info["missing_keys"] == set() == info["mismatched_keys"]
    assert {name.split(".")[2] for name in info["unexpected_keys"]} == ({"2"} if what == "all" else set())
    assert info["error_msgs"] == []


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., str]:
    """Run code about a repository of a stand-in Hub, with an empty home, and return what it printed.

    Further arguments are the tokens that the Hub knows.
    """

    def tell(code: str, *tokens: str) -> str:
        source = tmp_path / "repository"
        if not source.exists():
            shutil.copytree(DEMO_DIRECTORY, source)
        with serve({"a/b": source}) as hub:
            hub.tokens = {*tokens} or None
            done = run_code(
                "from helium_mlx import *\nfrom pathlib import Path\n" + code,
                env=environment(hub.url, tmp_path / "home"),
            )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return tell


def test_a_cache_of_ones_own_is_filled_and_read(tmp_path: Path, told: Callable[..., str]) -> None:
    cache = tmp_path / "cache"
    said = told(
        f"HeliumForCausalLM.from_pretrained('a/b', cache_dir={str(cache)!r})\n"
        f"HeliumForCausalLM.from_pretrained('a/b', cache_dir={str(cache)!r}, local_files_only=True)\n"
        "try: HeliumForCausalLM.from_pretrained('a/b', local_files_only=True)\n"
        "except HeliumError as error: print(error)\n"
    )
    assert (cache / "models--a--b/snapshots" / COMMIT / "model.safetensors").exists()
    assert "a/b: is not, or not whole, in" in said
    assert "local_files_only says not to ask the Hub" in said


def test_everything_is_fetched_again_where_that_is_asked_for(tmp_path: Path, told: Callable[..., str]) -> None:
    cache = tmp_path / "cache"
    said = told(
        f"HeliumForCausalLM.from_pretrained('a/b', cache_dir={str(cache)!r})\n"
        f"weights = next(Path({str(cache)!r}).glob('*/snapshots/*/model.safetensors')).resolve()\n"
        "size = weights.stat().st_size\n"
        "weights.write_bytes(b'torn')\n"
        f"HeliumForCausalLM.from_pretrained('a/b', cache_dir={str(cache)!r}, force_download=True)\n"
        "print(weights.stat().st_size == size)\n"
    )
    assert "True" in said


def test_a_token_reaches_the_hub(told: Callable[..., str]) -> None:
    said = told(
        "for options in ({}, {'token': 'hf_mine'}):\n"
        "    try: print(type(HeliumForCausalLM.from_pretrained('a/b', **options)).__name__)\n"
        "    except HeliumError as error: print(error)\n",
        "hf_mine",
    )
    assert "does not accept the token" in said
    assert said.endswith("HeliumForCausalLM\n")


def test_errors_of_all_kinds_are_ours() -> None:
    with pytest.raises(HeliumError, match="no such directory"):
        HeliumForCausalLM.from_pretrained("./nowhere", dtype="auto", device_map="auto")


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [(None, None, mx.float32), ("bfloat16", None, mx.bfloat16), ("bfloat16", "float16", mx.float16)],
    ids=str,
)
def test_a_model_of_a_config_has_random_weights(own: str | None, asked: str | None, expected: mx.Dtype) -> None:
    config = HeliumConfig.from_dict(config_values(num_hidden_layers=1, dtype=own))
    model = HeliumForCausalLM.from_config(config, dtype=asked, attn_implementation="sdpa", trust_remote_code=False)
    assert model.training
    assert model.dtype == model.model.layers[0].self_attn.qkv_proj.weight.dtype == expected  # pyright: ignore[reportFunctionMemberAccess]
    assert 0 < float(np.std(np.array(model.model.embed_tokens.weight.astype(mx.float32)))) < 1
    with pytest.raises(KeywordError, match=r"from_config\(\) has no argument dtypes; did you mean dtype\?"):
        HeliumForCausalLM.from_config(config, dtypes="float16")
