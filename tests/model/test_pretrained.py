"""What all models share: reading, writing, embeddings, size, modes; against transformers in tests/parity."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hub_standin import HubStandIn, serve
from hub_standin.client import environment
from mlx.utils import tree_flatten
from processes import run_code
from tiny_checkpoints import config_values, random_weights, write_tensors

import helium_mlx
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.checkpoint.weight_files import parse_size
from helium_mlx.diagnostics.selfcheck_cases import write_checkpoint
from helium_mlx.errors import ArgumentError, CheckpointError, ConfigError, UsageError
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.files.hub_access import HubAccess
from helium_mlx.model.helium import (
    HeliumForCausalLM,
    HeliumForSequenceClassification,
    HeliumForTokenClassification,
    HeliumModel,
)
from helium_mlx.model.pretrained import HeliumPreTrainedModel, Model
from helium_mlx.model.serialization import tensors_on_disk

IDS = mx.array([[1, 5, 6, 7]])
CLASSES: list[type[HeliumPreTrainedModel]] = [
    HeliumModel,
    HeliumForCausalLM,
    HeliumForSequenceClassification,
    HeliumForTokenClassification,
]
FAMILIES: list[dict[str, object]] = [
    {},
    {"model_type": "llama", "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    {"tie_word_embeddings": True, "num_key_value_heads": 2, "attention_bias": True},
    {"hidden_act": "xielu"},
]
every_class = pytest.mark.parametrize("model_class", CLASSES, ids=lambda c: c.__name__)


def tiny_config(**overrides: object) -> HeliumConfig:
    return HeliumConfig.from_dict(config_values(num_hidden_layers=2, num_labels=3, **overrides))


def run(model: nn.Module, ids: mx.array = IDS) -> mx.array:
    """The first output: the last hidden state or the logits."""
    return model(ids)[0]  # pyright: ignore[reportCallIssue]


def evaluated(model: Model) -> Model:
    model.eval()
    return model


def saved(model: HeliumPreTrainedModel, directory: Path, **options: int | str) -> dict[str, mx.array]:
    model.save_pretrained(directory, **options)  # pyright: ignore[reportArgumentType]
    tensors: dict[str, mx.array] = {}
    for path in directory.glob("*.safetensors"):
        tensors |= mx.load(str(path))  # pyright: ignore
    return tensors


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@every_class
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_loads_again(
    model_class: type[HeliumPreTrainedModel], family: dict[str, object], tmp_path: Path
) -> None:
    model = evaluated(model_class(tiny_config(**family)))
    model.save_pretrained(tmp_path)
    again = model_class.from_pretrained(tmp_path)
    assert not again.training
    assert mx.array_equal(run(again), run(model))
    names, tensors = tensors_on_disk(model), tensors_on_disk(again)
    assert names.keys() == tensors.keys()
    assert all(mx.array_equal(names[name], tensors[name]) for name in names)
    assert again.config.to_dict() == {**model.config.to_dict(), **_written(model), "dtype": "float32"}


def _written(model: HeliumPreTrainedModel) -> dict[str, object]:
    family = "Llama" if model.config.model_type == "llama" else "Helium"
    return {"architectures": [family + model.architecture]}


def test_the_bare_decoder_is_saved_without_a_prefix(tmp_path: Path) -> None:
    names = saved(HeliumModel(tiny_config()), tmp_path)
    assert "embed_tokens.weight" in names
    assert "layers.1.self_attn.q_proj.weight" in names
    assert not [name for name in names if name.startswith(("model.", "lm_head")) or "qkv" in name]
    assert not (tmp_path / "generation_config.json").exists()


def test_a_causal_lm_is_saved_under_transformers_names(tmp_path: Path) -> None:
    model = HeliumForCausalLM(tiny_config(num_key_value_heads=2))
    tensors = saved(model, tmp_path)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in random_weights(model.config).items()
    }
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert {name: generation[f"{name}_token_id"] for name in ("bos", "eos", "pad")} == {"bos": 1, "eos": 2, "pad": 3}


@every_class
def test_a_bare_checkpoint_opens_in_every_class(model_class: type[HeliumPreTrainedModel], tmp_path: Path) -> None:
    body = HeliumModel(tiny_config())
    body.save_pretrained(tmp_path)
    head = {
        HeliumForCausalLM: ["lm_head.weight"],
        HeliumForSequenceClassification: ["score.weight"],
        HeliumForTokenClassification: ["score.weight", "score.bias"],
    }.get(model_class, [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = model_class.from_pretrained(tmp_path)
    said = [str(warning.message) for warning in caught if "initialised" in str(warning.message)]
    assert len(said) == bool(head)
    assert all(name in said[0] for name in head)
    assert mx.array_equal(model.body(IDS).last_hidden_state, body(IDS).last_hidden_state)


@every_class
@pytest.mark.parametrize("source", CLASSES[1:], ids=lambda c: c.__name__)
def test_every_class_opens_the_others_checkpoints(
    model_class: type[HeliumPreTrainedModel], source: type[HeliumPreTrainedModel], tmp_path: Path
) -> None:
    original = source(tiny_config())
    original.save_pretrained(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = model_class.from_pretrained(tmp_path)
    said = " ".join(str(warning.message) for warning in caught if issubclass(warning.category, UserWarning))
    assert mx.array_equal(model.body(IDS).last_hidden_state, original.body(IDS).last_hidden_state)
    scored = (HeliumForSequenceClassification, HeliumForTokenClassification)
    if model_class is source:
        assert said == ""
    elif not (model_class in scored and source in scored):
        foreign = "lm_head.weight" if source is HeliumForCausalLM else "score.weight"
        assert foreign in said
        assert "left out" in said
    if model_class is HeliumForTokenClassification and source is HeliumForSequenceClassification:
        assert "score.bias" in said
        assert "score.weight" not in said


def test_a_new_head_has_the_configured_deviation_and_dtype(tmp_path: Path) -> None:
    HeliumModel(tiny_config(initializer_range=0.5)).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"score\.weight"):
        model = HeliumForSequenceClassification.from_pretrained(tmp_path, dtype="bfloat16")
    assert model.score.weight.dtype == mx.bfloat16
    assert mx.std(model.score.weight.astype(mx.float32)).item() == pytest.approx(0.5, rel=0.3)


def remove(name: str) -> Callable[[dict[str, mx.array]], object]:
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (remove("model.layers.1.mlp.up_proj.weight"), ["missing", "model.layers.1.mlp.up_proj.weight"]),
        (remove("model.norm.weight"), ["missing", "model.norm.weight"]),
        (lambda t: t.update({"model.extra": mx.zeros(2)}), ["no place", "model.extra"]),
        (lambda t: t.update({"score.weight": mx.zeros((4, 64))}), ["score.weight", "[4, 64]", "[3, 64]"]),
        (
            lambda t: t.update({"model.norm.weight": mx.zeros(32)}),
            ["model.norm.weight", "[32]", "expected [64]"],
        ),
    ],
)
def test_anything_else_is_an_error_that_lists_it(
    tmp_path: Path, change: Callable[[dict[str, mx.array]], object], said: list[str]
) -> None:
    directory = write_checkpoint(tmp_path, config_values(num_labels=3), "ForSequenceClassification")
    tensors = random_weights(HeliumConfig.from_pretrained(directory), "ForSequenceClassification")
    change(tensors)
    write_tensors(directory / "model.safetensors", tensors)
    with pytest.raises(CheckpointError) as caught:
        HeliumForSequenceClassification.from_pretrained(directory)
    assert all(part in str(caught.value) for part in said)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_are_kept_or_taken(tmp_path: Path, dtype: str) -> None:
    HeliumForCausalLM(tiny_config()).save_pretrained(tmp_path / "a")
    HeliumForCausalLM.from_pretrained(tmp_path / "a", dtype=dtype).save_pretrained(tmp_path / "b")
    assert HeliumConfig.from_pretrained(tmp_path / "b").dtype == dtype
    assert run(HeliumForCausalLM.from_pretrained(tmp_path / "b")).dtype == getattr(mx, dtype)


@pytest.mark.parametrize("size", [40_000, "40KB", "0.00004 GB"])
def test_weights_are_sharded_above_a_size(tmp_path: Path, size: int | str) -> None:
    model = HeliumForCausalLM(tiny_config())
    whole = saved(model, tmp_path / "one")
    parts = saved(model, tmp_path / "many", max_shard_size=size)
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3
    assert all(path.stat().st_size < 42_000 for path in files)
    weight_map = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())["weight_map"]
    assert weight_map.keys() == whole.keys() == parts.keys()
    assert mx.array_equal(run(HeliumForCausalLM.from_pretrained(tmp_path / "many")), run(model))


@pytest.mark.parametrize(("text", "expected"), [("5GB", 5 * 10**9), ("1.5MiB", 3 * 2**19), ("7B", 7), (12, 12)])
def test_sizes_are_read_as_transformers_reads_them(text: int | str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "0", "5 XB", "9" * 400 + "GB", 0, -1, True, 1.5, None])
def test_other_sizes_are_refused(text: object) -> None:
    with pytest.raises(ArgumentError, match="max_shard_size"):
        parse_size(text)  # pyright: ignore[reportArgumentType]


def test_saving_again_leaves_no_stale_shards(tmp_path: Path) -> None:
    model = HeliumForCausalLM(tiny_config())
    model.save_pretrained(tmp_path, max_shard_size=40_000)
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]


def test_saving_over_the_source_is_safe(tmp_path: Path) -> None:
    HeliumForCausalLM(tiny_config()).save_pretrained(tmp_path)
    model = HeliumForCausalLM.from_pretrained(tmp_path)
    before = run(model)
    model.save_pretrained(tmp_path)
    assert mx.array_equal(run(HeliumForCausalLM.from_pretrained(tmp_path)), before)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("quantized") / "demo"
    helium_mlx.convert("demo", str(directory), quantize=True)
    return directory


def test_a_quantized_model_stays_quantized(quantized: Path, tmp_path: Path) -> None:
    model = HeliumForCausalLM.from_pretrained(quantized)
    tensors = saved(model, tmp_path)
    again = HeliumForCausalLM.from_pretrained(tmp_path)
    assert tensors["model.layers.0.mlp.up_proj.weight"].dtype == mx.uint32
    assert again.config.quantization == model.config.quantization
    assert mx.array_equal(run(again), run(model))


@pytest.mark.parametrize("model_class", [HeliumModel, HeliumForTokenClassification])
def test_a_quantized_decoder_takes_other_heads(
    quantized: Path, tmp_path: Path, model_class: type[HeliumPreTrainedModel]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_class.from_pretrained(quantized)
    model.save_pretrained(tmp_path)
    again = model_class.from_pretrained(tmp_path)
    assert mx.array_equal(run(again), run(model))
    assert again.num_parameters() == model.num_parameters()


@every_class
@pytest.mark.parametrize("rows", [120, 50])
@pytest.mark.parametrize("tied", [True, False])
def test_resizing_keeps_old_rows_and_means_new_ones(
    model_class: type[HeliumPreTrainedModel], rows: int, tied: bool, tmp_path: Path
) -> None:
    model = evaluated(model_class(tiny_config(tie_word_embeddings=tied)))
    old = {name: tensor for name, tensor in model.tensors().items() if "embed" in name or "lm_head" in name}
    returned = model.resize_token_embeddings(rows)
    assert returned is model.get_input_embeddings()
    assert model.config.vocab_size == model.body.config.vocab_size == rows
    for name, before in old.items():
        after = model.tensors()[name]
        assert after.shape == (rows, 64)
        kept = min(rows, 96)
        assert mx.array_equal(after[:kept], before[:kept])
        assert mx.allclose(after[kept:], before.mean(axis=0), atol=1e-6)
    with pytest.raises(ArgumentError, match="vocab_size"):
        model(mx.array([[rows]]))  # pyright: ignore[reportCallIssue]
    model.save_pretrained(tmp_path)
    assert mx.array_equal(run(model_class.from_pretrained(tmp_path)), run(model))


@pytest.mark.parametrize("rows", [0, -1, 1.5, True, None, 2])
def test_sizes_that_cannot_be_are_refused(rows: object) -> None:
    model = HeliumForCausalLM(tiny_config())
    with pytest.raises(ArgumentError, match="new_num_tokens"):
        model.resize_token_embeddings(rows)  # pyright: ignore[reportArgumentType]
    assert model.config.vocab_size == 96


def test_a_quantized_embedding_is_not_resized(quantized: Path) -> None:
    with pytest.raises(ArgumentError, match="quantized"):
        HeliumForCausalLM.from_pretrained(quantized).resize_token_embeddings(100)


@every_class
def test_input_embeddings_are_replaced(model_class: type[HeliumPreTrainedModel]) -> None:
    model = evaluated(model_class(tiny_config()))
    before, embedding = run(model), nn.Embedding(96, 64)
    model.set_input_embeddings(embedding)
    assert model.get_input_embeddings() is embedding
    assert not mx.allclose(run(model), before)


@pytest.mark.parametrize("value", [nn.Embedding(95, 64), nn.Embedding(96, 32), nn.Linear(64, 96), None])
def test_embeddings_of_another_shape_are_refused(value: object) -> None:
    with pytest.raises(ArgumentError, match=r"\(96, 64\)"):
        HeliumModel(tiny_config()).set_input_embeddings(value)  # pyright: ignore[reportArgumentType]


@every_class
def test_parameters_are_counted(model_class: type[HeliumPreTrainedModel]) -> None:
    config = tiny_config(num_key_value_heads=2)
    model = model_class(config)
    layer = 2 * 64 + 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96
    head = {"Model": 0, "ForCausalLM": 96 * 64, "ForSequenceClassification": 3 * 64, "ForTokenClassification": 3 * 65}
    expected = 96 * 64 + 64 + 2 * layer + head[model.architecture]
    assert model.num_parameters() == expected
    model.body.layers[0].freeze()
    assert model.num_parameters(only_trainable=True) == expected - layer


def test_a_tied_head_is_counted_once() -> None:
    tied, untied = (HeliumForCausalLM(tiny_config(tie_word_embeddings=tied)) for tied in (True, False))
    assert untied.num_parameters() - tied.num_parameters() == 96 * 64


def test_packed_weights_count_unpacked(quantized: Path) -> None:
    full = HeliumForCausalLM.from_pretrained("demo")
    assert HeliumForCausalLM.from_pretrained(quantized).num_parameters() == full.num_parameters()


def test_the_constants_of_xielu_are_not_trained() -> None:
    model = HeliumForCausalLM(tiny_config(hidden_act="xielu"))
    trained = [name for name, _ in tree_flatten(model.trainable_parameters())]  # pyright: ignore
    assert [name for name in trained if "act_fn" in name and "layers.0" in name] == [
        "model.layers.0.mlp.act_fn.alpha_p",
        "model.layers.0.mlp.act_fn.alpha_n",
    ]


def test_the_padding_token_starts_at_zero_and_is_not_trained() -> None:
    model = HeliumForSequenceClassification(tiny_config())
    assert mx.array_equal(model.get_input_embeddings().weight[3], mx.zeros(64))  # pyright: ignore
    ids = mx.array([[1, 3, 5]])
    _, gradients = nn.value_and_grad(model, lambda: model(ids, labels=mx.array([1])).loss)()  # pyright: ignore
    rows = mx.abs(gradients["model"]["embed_tokens"]["weight"]).sum(axis=1)
    assert [i for i in range(96) if rows[i].item() > 0] == [1, 5]  # pyright: ignore[reportOperatorIssue]


@pytest.mark.parametrize("rate", ["attention_dropout", "classifier_dropout"])
def test_dropout_acts_in_training_only(rate: str) -> None:
    model = HeliumForTokenClassification(tiny_config(**{"classifier_dropout": 0.0, rate: 0.5}))
    plain = evaluated(HeliumForTokenClassification(tiny_config(classifier_dropout=0.0)))
    plain.load_weights(list(tree_flatten(model.parameters())))  # pyright: ignore
    model.eval()
    assert mx.allclose(run(model), run(plain), atol=1e-6)
    model.train()
    assert not mx.allclose(run(model), run(model))
    assert not mx.allclose(run(model), run(plain), atol=1e-3)


def test_dropout_keeps_the_mean() -> None:
    model = HeliumForTokenClassification(tiny_config(classifier_dropout=0.5, initializer_range=0.3))
    model.eval()
    expected = run(model)
    model.train()
    mx.random.seed(0)
    mean = mx.stack([run(model) for _ in range(600)]).mean(axis=0)
    assert mx.abs(mean - expected).max().item() < 0.2 * mx.abs(expected).max().item()  # pyright: ignore


def test_dropped_attention_is_scaled_up() -> None:
    model = HeliumForCausalLM(tiny_config(attention_dropout=0.25))
    model.train()
    weights = model(mx.broadcast_to(IDS, (16, 4)), output_attentions=True).attentions
    model.eval()
    kept = model(IDS, output_attentions=True).attentions
    assert weights is not None
    assert kept is not None
    ratio = weights[0] / mx.maximum(kept[0], 1e-9)
    visible = mx.broadcast_to(mx.tril(mx.ones((4, 4))), ratio.shape) > 0
    dropped = (ratio < 1e-6) & visible
    assert mx.where(visible & ~dropped, mx.abs(ratio - 4 / 3), 0).max().item() < 1e-4  # pyright: ignore
    assert 0.15 < dropped.sum().item() / visible.sum().item() < 0.35  # pyright: ignore


def test_a_loss_is_differentiable_with_a_cache_as_without() -> None:
    model = HeliumForCausalLM(tiny_config())
    both = [
        nn.value_and_grad(model, lambda use_cache: model(IDS, labels=IDS, use_cache=use_cache).loss)(use_cache)
        for use_cache in (True, False)
    ]
    (loss, gradients), (other_loss, other_gradients) = both
    assert mx.allclose(loss, other_loss)
    pairs = zip(tree_flatten(gradients), tree_flatten(other_gradients), strict=True)
    assert all(mx.allclose(a, b, atol=1e-6) for (_, a), (_, b) in pairs)  # pyright: ignore


def test_a_gradient_step_lowers_the_loss_and_saves(tmp_path: Path) -> None:
    from mlx.optimizers import Adam

    model = HeliumForSequenceClassification(tiny_config(classifier_dropout=0.0))
    ids, labels = mx.array([[1, 5, 6, 7], [1, 8, 9, 3]]), mx.array([2, 0])
    step = nn.value_and_grad(model, lambda: model(ids, labels=labels).loss)  # pyright: ignore
    optimizer, losses = Adam(learning_rate=1e-3), []
    for _ in range(5):
        loss, gradients = step()
        optimizer.update(model, gradients)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)
    assert mx.allclose(run(HeliumForSequenceClassification.from_pretrained(tmp_path), ids), run(model, ids))


def test_a_config_is_written_and_read(tmp_path: Path) -> None:
    config = tiny_config(rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0})
    config.save_pretrained(tmp_path / "new" / "place")
    again = HeliumConfig.from_pretrained(tmp_path / "new" / "place")
    assert again == HeliumConfig.from_dict(config.to_dict())
    assert again.rope_parameters == config.rope_parameters
    assert again.num_labels == 3
    assert (
        HeliumConfig.from_pretrained("demo").vocab_size == HeliumForCausalLM.from_pretrained("demo").config.vocab_size
    )


def test_a_config_that_is_not_there_or_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?i)no such file"):
        HeliumConfig.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
        HeliumConfig.from_pretrained("./nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        tiny_config().save_pretrained(tmp_path / "file")


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with serve({"somebody/tiny-helium": DEMO_DIRECTORY}) as hub:
        yield hub


def with_hub(hub: HubStandIn, home: Path, code: str) -> str:
    """Run Python code whose Hub is the stand-in; return what it prints."""
    result = run_code(f"from helium_mlx import *\n{code}", env=environment(hub.url, home))
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_a_model_is_pushed_as_it_is_saved(hub: HubStandIn, tmp_path: Path) -> None:
    code = f"""
model = HeliumForSequenceClassification.from_pretrained({str(tmp_path / "saved")!r})
print(model.push_to_hub("somebody/new", private=True))"""
    HeliumForSequenceClassification(tiny_config()).save_pretrained(tmp_path / "saved")
    commit = with_hub(hub, tmp_path / "home", code).rpartition("/")[2]
    assert hub.repositories["somebody/new"].branches["main"] == commit
    made = hub.created[0]
    assert (made["name"], made["organization"]) == ("new", "somebody")
    assert made.get("private") is True or made.get("visibility") == "private"
    files = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    assert hub.uploaded["somebody/new"] == files


def test_a_refused_upload_is_one_line(hub: HubStandIn, tmp_path: Path) -> None:
    hub.refuses_uploads = True
    code = """
try:
    HeliumForCausalLM(HeliumConfig(64, 64, 64, 2, 2)).push_to_hub("somebody/new")
except UploadError as error:
    print(error)"""
    said = with_hub(hub, tmp_path / "home", code)
    assert said.startswith("somebody/new: the token may not write there")
    assert "\n" not in said


def test_a_config_comes_from_the_hub_alone(hub: HubStandIn, tmp_path: Path) -> None:
    code = 'print(HeliumConfig.from_pretrained("somebody/tiny-helium", revision="v1").vocab_size)'
    assert int(with_hub(hub, tmp_path, code)) == HeliumConfig.from_pretrained("demo").vocab_size
    assert any(path.endswith("/revision/v1") for path in hub.requests)
    assert not [path for path in hub.requests if path.endswith(".safetensors")]


def test_a_model_comes_from_the_hub(hub: HubStandIn, tmp_path: Path) -> None:
    code = 'print(HeliumForCausalLM.from_pretrained("somebody/tiny-helium").num_parameters())'
    assert int(with_hub(hub, tmp_path, code)) == HeliumForCausalLM.from_pretrained("demo").num_parameters()


def test_a_repository_that_is_not_there_is_one_line(hub: HubStandIn, tmp_path: Path) -> None:
    code = """
for model in (HeliumConfig, HeliumModel):
    try:
        model.from_pretrained("somebody/nothing")
    except CheckpointError as error:
        print(error)"""
    said = with_hub(hub, tmp_path, code).splitlines()
    assert len(said) == 2
    assert all(line.startswith("somebody/nothing: the Hub has no such repository") for line in said)


def test_a_revision_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def resolve(name: str, *, revision: str | None, subfolder: str | None, access: HubAccess) -> Path:
        asked.extend((revision, subfolder))
        return DEMO_DIRECTORY

    monkeypatch.setattr("helium_mlx.model.pretrained.resolve", resolve)
    HeliumForCausalLM.from_pretrained("somebody/helium", revision="v1", subfolder="variants/2020")
    assert asked == ["v1", "variants/2020"]


def test_a_dtype_may_be_mlxs_own() -> None:
    assert HeliumForCausalLM.from_pretrained("demo", dtype=mx.float16).model.norm.weight.dtype == mx.float16


def test_an_option_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match="cache_dirs is neither an option of from_pretrained here nor a field"):
        HeliumForCausalLM.from_pretrained("demo", cache_dirs="x")


def test_a_checkpoint_may_lie_in_a_subfolder(tmp_path: Path) -> None:
    config = tiny_config()
    HeliumModel(config).save_pretrained(tmp_path / "variants" / "2020")
    assert HeliumConfig.from_pretrained(tmp_path, subfolder="variants/2020").num_hidden_layers == 2
    assert HeliumModel.from_pretrained(tmp_path, subfolder="variants/2020").config.num_hidden_layers == 2
    for outside in ("..", "/tmp"):
        with pytest.raises(UsageError, match="expected the name of a folder inside"):
            HeliumModel.from_pretrained(tmp_path, subfolder=outside)
    with pytest.raises(CheckpointError, match="has no subfolder 2021"):
        HeliumModel.from_pretrained(tmp_path, subfolder="2021")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("packed", [{}, {"bits": 8, "group_size": 32}, {"mode": "mxfp4", "bits": 4, "group_size": 32}])
def test_a_model_quantized_in_memory_is_saved_for_us_and_for_mlx_lm(
    tmp_path: Path, packed: dict[str, object], tied: bool
) -> None:
    utils = pytest.importorskip("mlx_lm.utils")
    # mlx-lm's Helium knows no tied head.
    family: dict[str, object] = {"model_type": "llama", "tie_word_embeddings": True} if tied else {}
    model = HeliumForCausalLM(tiny_config(intermediate_size=128, num_key_value_heads=2, **family))
    nn.quantize(model, **packed)  # pyright: ignore[reportArgumentType]
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    expected: dict[str, object] = {"bits": 4, "group_size": 64, "mode": "affine"} | packed
    assert written["quantization"] == written["quantization_config"] == expected
    assert mx.array_equal(run(HeliumForCausalLM.from_pretrained(tmp_path)), run(model))
    assert mx.allclose(utils.load_model(tmp_path)[0](IDS), run(model), atol=1e-4)


def test_modules_of_different_bits_are_saved_each_with_its_own(tmp_path: Path) -> None:
    model = HeliumForCausalLM(tiny_config(intermediate_size=128))
    nn.quantize(model, bits=4)
    model.lm_head = nn.Linear(64, 96, bias=False).to_quantized(64, 8)
    model.model.layers[0].self_attn.qkv_proj = nn.Linear(64, 192, bias=False)
    model.save_pretrained(tmp_path)
    assert mx.array_equal(run(HeliumForCausalLM.from_pretrained(tmp_path)), run(model))


def test_a_dequantized_model_says_nothing_of_quantization(quantized: Path, tmp_path: Path) -> None:
    full = HeliumForCausalLM.from_pretrained("demo")
    full.config = HeliumConfig.from_pretrained(quantized)
    full.save_pretrained(tmp_path)
    assert "quantization" not in json.loads((tmp_path / "config.json").read_text())


def test_lora_layers_are_refused_until_they_are_fused(tmp_path: Path) -> None:
    lora = pytest.importorskip("mlx_lm.tuner.lora")
    model = HeliumForCausalLM(tiny_config())
    layer = model.model.layers[0].self_attn
    adapted = lora.LoRALinear.from_base(layer.o_proj, r=2)
    adapted.lora_b = mx.random.normal(adapted.lora_b.shape)
    layer.o_proj = adapted
    with pytest.raises(CheckpointError, match=r"LoRA layers \(model\.layers\.0\.self_attn\.o_proj\).*fuse") as caught:
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    expected = run(model)
    advice = str(caught.value).partition("first: ")[2]
    eval(advice, {"mlx": __import__("mlx.utils"), "model": model})
    model.save_pretrained(tmp_path)
    assert mx.allclose(run(HeliumForCausalLM.from_pretrained(tmp_path)), expected, atol=1e-4)


def test_a_model_that_does_not_fit_its_config_is_not_saved(tmp_path: Path) -> None:
    model = HeliumForSequenceClassification(tiny_config(intermediate_size=128))
    model.config.num_labels = 5
    with pytest.raises(CheckpointError, match=r"score\.weight is \[3, 64\], expected \[5, 64\]"):
        model.save_pretrained(tmp_path)
    nn.quantize(model.model)
    model.score = nn.Linear(64, 5, bias=False)
    model.save_pretrained(tmp_path)
    assert HeliumForSequenceClassification.from_pretrained(tmp_path).config.num_labels == 5
    model.score = model.score.to_quantized()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(CheckpointError, match="head `score` is quantized"):
        model.save_pretrained(tmp_path)


def test_a_number_of_labels_may_be_numpys(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="initialised"):
        model = HeliumForSequenceClassification.from_pretrained("demo", num_labels=np.int64(3))
    assert (model.score.weight.shape[0], type(model.config.num_labels)) == (3, int)
    model.save_pretrained(tmp_path)
    assert HeliumForSequenceClassification.from_pretrained(tmp_path).config.num_labels == 3


class Shifted(nn.Linear):
    """Has the parameters of its base, and another function."""

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x) + 1


def shift_projection(model: HeliumForCausalLM) -> None:
    model.model.layers[0].self_attn.o_proj = Shifted(64, 64, bias=False)


def shift_head(model: HeliumForCausalLM) -> None:
    model.lm_head = Shifted(64, model.config.vocab_size, bias=False)


def exchange_norm(model: HeliumForCausalLM) -> None:
    model.model.layers[1].input_layernorm = nn.LayerNorm(64, bias=False)  # pyright: ignore[reportAttributeAccessIssue]


def change_eps(model: HeliumForCausalLM) -> None:
    model.model.norm.eps = 0.25


def change_eps_in_config(model: HeliumForCausalLM) -> None:
    model.config.rms_norm_eps = 0.25


def exchange_mlp(model: HeliumForCausalLM) -> None:
    class Doubled(type(model.model.layers[0].mlp)):
        def __call__(self, x: mx.array, residual: mx.array | None = None) -> mx.array:
            return 2 * super().__call__(x, residual)

    model.model.layers[0].mlp.__class__ = Doubled


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (shift_projection, r"model\.layers\.0\.self_attn\.o_proj is a Shifted; .*: put .* such as nn\.Linear"),
        (shift_head, r"lm_head is a Shifted"),
        (exchange_norm, r"model\.layers\.1\.input_layernorm is a LayerNorm"),
        (exchange_mlp, r"model\.layers\.0\.mlp is a Doubled"),
        (change_eps, r"model\.norm has eps 0\.25, and the config rms_norm_eps 0\.01.*set both"),
        (change_eps_in_config, r"has eps 0\.01, and the config rms_norm_eps 0\.25.*set both"),
    ],
)
def test_modules_with_another_function_are_not_saved(
    tmp_path: Path, change: Callable[[HeliumForCausalLM], None], said: str
) -> None:
    model = HeliumForCausalLM(tiny_config())
    change(model)
    with pytest.raises(CheckpointError, match=said) as caught:
        model.save_pretrained(tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@every_class
@pytest.mark.parametrize("family", FAMILIES)
def test_a_models_own_modules_are_saved(tmp_path: Path, model_class: type[Model], family: dict[str, object]) -> None:
    class Mine(model_class):
        """A class of the user's own, for the whole."""

    model = Mine(tiny_config(**family))
    for norm in [module for module in model.modules() if isinstance(module, nn.RMSNorm)]:
        norm.eps = 0.5
    model.config.rms_norm_eps = 0.5
    model.body.embed_tokens = nn.Embedding(*model.body.embed_tokens.weight.shape)
    model.save_pretrained(tmp_path)
    assert mx.allclose(run(evaluated(model_class.from_pretrained(tmp_path))), run(evaluated(model)), atol=1e-5)
