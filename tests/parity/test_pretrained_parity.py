"""Checkpoints go both ways between this package and transformers, for every class, with identical logits."""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parent.parent / "reference"))

from make_selfcheck_reference import load, to_mlx, to_torch  # noqa: E402

import helium_mlx  # noqa: E402
from helium_mlx.checkpoint.config import HeliumConfig  # noqa: E402
from helium_mlx.checkpoint.layout import Architecture  # noqa: E402
from helium_mlx.diagnostics.selfcheck_cases import config_values, token_ids, write_checkpoint  # noqa: E402
from helium_mlx.diagnostics.selfcheck_runs import relative_error  # noqa: E402
from helium_mlx.model.pretrained import HeliumPreTrainedModel  # noqa: E402

pytestmark = pytest.mark.parity

ARCHITECTURES: tuple[Architecture, ...] = (
    "Model",
    "ForCausalLM",
    "ForSequenceClassification",
    "ForTokenClassification",
)
FAMILIES: dict[str, dict[str, object]] = {
    "helium": {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "hidden_act": "prelu"},
    "tied helium": {"tie_word_embeddings": True, "hidden_act": "xielu"},
    "llama": {"model_type": "llama", "num_key_value_heads": 1, "attention_bias": True, "head_dim": 32},
    "tied llama": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
    },
}
IDS = token_ids("right pad")

both = pytest.mark.parametrize("family", FAMILIES)
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def ours(directory: Path, architecture: Architecture) -> HeliumPreTrainedModel:
    return getattr(helium_mlx, f"Helium{architecture}").from_pretrained(directory)


def values(family: str) -> dict[str, object]:
    return config_values(num_hidden_layers=2, num_labels=3, **FAMILIES[family])


def theirs_of(directory: Path, architecture: Architecture):  # noqa: ANN201
    """Return transformers' tensors and first output."""
    model = load(directory, architecture)
    with torch.no_grad():
        return dict(model.state_dict()), model(to_torch(IDS))[0]


@both
@every_architecture
def test_transformers_opens_what_we_save(tmp_path: Path, architecture: Architecture, family: str) -> None:
    source = write_checkpoint(tmp_path / "source", values(family), architecture)
    ours(source, architecture).save_pretrained(tmp_path / "saved", max_shard_size="60KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    tensors, output = theirs_of(source, architecture)
    saved_tensors, saved_output = theirs_of(tmp_path / "saved", architecture)
    assert tensors.keys() == saved_tensors.keys()
    assert all(torch.equal(tensors[name], saved_tensors[name]) for name in tensors)
    assert torch.equal(output, saved_output)


@both
@every_architecture
def test_we_open_what_transformers_saves(tmp_path: Path, architecture: Architecture, family: str) -> None:
    source = write_checkpoint(tmp_path / "source", values(family), architecture)
    theirs = load(source, architecture)
    theirs.save_pretrained(tmp_path / "saved")
    model = ours(tmp_path / "saved", architecture)
    assert mx.array_equal(model(IDS)[0], ours(source, architecture)(IDS)[0])  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        reference = to_mlx(theirs(to_torch(IDS))[0])
    real = mx.array(True) if reference.ndim == 2 else (IDS != 3)[..., None]
    output = model(IDS, (IDS != 3).astype(mx.int32))[0]  # pyright: ignore[reportCallIssue]
    assert relative_error(mx.where(real, output, 0), mx.where(real, reference, 0)) <= 1e-5


@pytest.mark.parametrize(("stored", "cast"), [("bfloat16", "float32"), ("float32", "float32"), ("float32", None)])
def test_slopes_of_xielu_are_as_there_after_a_cast(tmp_path: Path, stored: str, cast: str | None) -> None:
    """A cast takes along what transformers keeps in bfloat16, and nothing is rounded to that any more."""
    config = config_values(num_hidden_layers=2, hidden_act="xielu", dtype=stored)
    source = write_checkpoint(tmp_path, config, dtype=stored)
    model, theirs = ours(source, "ForCausalLM"), load(source)
    if cast is not None:
        model.set_dtype(getattr(mx, cast))
        theirs = theirs.to(getattr(torch, cast))
    slopes = model.body.layers[0].mlp.act_fn
    there = theirs.model.layers[0].mlp.act_fn
    x = mx.linspace(-3, 3, 97)
    with torch.no_grad():
        reference, logits = to_mlx(there(torch.linspace(-3, 3, 97))), to_mlx(theirs(to_torch(IDS))[0])
    assert relative_error(slopes(x), reference) <= 1e-6
    mask = (IDS != 3).astype(mx.int32)
    real = (IDS != 3)[..., None]
    output = model(IDS, mask)[0]  # pyright: ignore[reportCallIssue]
    assert relative_error(mx.where(real, output, 0), mx.where(real, logits, 0)) <= 1e-5


@both
@every_architecture
def test_parameters_are_counted_as_there(tmp_path: Path, architecture: Architecture, family: str) -> None:
    source = write_checkpoint(tmp_path, values(family), architecture)
    assert ours(source, architecture).num_parameters() == load(source, architecture).num_parameters()


@both
@pytest.mark.parametrize("rows", [120, 50])
def test_embeddings_are_resized_as_there(tmp_path: Path, family: str, rows: int) -> None:
    source = write_checkpoint(tmp_path / "source", values(family))
    model, theirs = ours(source, "ForCausalLM"), load(source)
    model.resize_token_embeddings(rows)
    theirs.resize_token_embeddings(rows)
    model.save_pretrained(tmp_path / "saved")
    saved = load(tmp_path / "saved").state_dict()
    for name, tensor in theirs.state_dict().items():
        # transformers adds noise of 1e-9 of the old rows' covariance to new rows.
        assert torch.allclose(saved[name], tensor, atol=1e-3 if "embed" in name or "lm_head" in name else 0)
        assert tensor.ndim == 0 or torch.equal(saved[name][:50], tensor[:50])


@pytest.mark.parametrize("family", ["helium", "llama"])
def test_configs_go_both_ways(tmp_path: Path, family: str) -> None:
    import transformers

    config_class = transformers.HeliumConfig if family == "helium" else transformers.LlamaConfig
    ours_of = HeliumConfig.from_dict(values(family))
    ours_of.save_pretrained(tmp_path / "ours")
    theirs = config_class.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    again = HeliumConfig.from_pretrained(tmp_path / "theirs")
    ignored = {"transformers_version", "architectures"}
    before, after = ({k: v for k, v in c.to_dict().items() if k not in ignored} for c in (ours_of, again))
    assert before == {key: after[key] for key in before}
