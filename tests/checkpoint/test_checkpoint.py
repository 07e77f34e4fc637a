import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from measures import relative_error
from tiny_checkpoints import CASES, config_values, random_weights, write_checkpoint, write_tensors

import helium_mlx
from helium_mlx.checkpoint import checkpoint as checkpoint_module
from helium_mlx.checkpoint.checkpoint import open_checkpoint, weight_bytes
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.conversion.conversion import convert
from helium_mlx.errors import CheckpointError, ConfigError
from helium_mlx.model.loading import load_model

PROMPT = mx.array([[1, 10, 20, 30]])


def write_shards(directory: Path, weights: dict[str, mx.array], count: int = 3) -> None:
    names = sorted(weights)
    weight_map = {}
    for i in range(count):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        part = names[i::count]
        write_tensors(directory / file, {name: weights[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def rewrite(directory: Path, change: Callable[[dict[str, mx.array]], object]) -> None:
    weights = random_weights(HeliumConfig.from_json_file(directory / "config.json"))
    change(weights)
    write_tensors(directory / "model.safetensors", weights)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny")


def test_shards_load_as_one_file_does(directory: Path) -> None:
    whole = load_model(directory)(PROMPT).logits
    (directory / "model.safetensors").unlink()
    write_shards(directory, random_weights(HeliumConfig.from_json_file(directory / "config.json")))
    assert mx.array_equal(load_model(directory)(PROMPT).logits, whole)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_stored_dtype_loads_in_itself_and_in_any_other(tmp_path: Path, dtype: str) -> None:
    directory = write_checkpoint(tmp_path / dtype, dtype=dtype)
    assert load_model(directory)(PROMPT).logits.dtype == getattr(mx, dtype)
    for other in ("bfloat16", "float16", "float32"):
        assert load_model(directory, dtype=other)(PROMPT).logits.dtype == getattr(mx, other)


def test_weights_are_evaluated_and_the_model_is_not_training(directory: Path) -> None:
    model = load_model(directory)
    (directory / "model.safetensors").unlink()
    assert not model.training
    assert mx.isfinite(model(PROMPT).logits).all()


def test_a_tied_checkpoint_may_carry_the_head_that_is_its_embedding(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, **CASES["helium-mqa-tied"])
    expected = load_model(directory)(PROMPT).logits
    rewrite(directory, lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"]}))
    model = load_model(directory)
    assert mx.array_equal(model(PROMPT).logits, expected)
    assert model.config.tie_word_embeddings


def test_a_tied_checkpoint_with_another_head_is_untied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "_COMPARED_BYTES", 1000)
    directory = write_checkpoint(tmp_path, **CASES["helium-mqa-tied"])
    head = mx.zeros((96, 64))
    for row in (95, 0):
        rewrite(
            directory,
            lambda weights, row=row: weights.update(
                {"lm_head.weight": mx.where(mx.arange(96)[:, None] == row, head, weights["model.embed_tokens.weight"])}
            ),
        )
        with pytest.warns(UserWarning, match="lm_head differs from the embedding"):
            model = load_model(directory)
        assert not model.config.tie_word_embeddings
        assert (model(PROMPT).logits[..., row] == 0).all()


def test_a_tied_matrix_may_be_saved_under_the_heads_name_only(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, **CASES["helium-mqa-tied"])
    expected = load_model(directory)(PROMPT).logits
    rewrite(directory, lambda weights: weights.update({"lm_head.weight": weights.pop("model.embed_tokens.weight")}))
    assert mx.array_equal(load_model(directory)(PROMPT).logits, expected)
    assert mx.array_equal(helium_mlx.HeliumForCausalLM.from_pretrained(directory)(PROMPT).logits, expected)


def test_old_rotary_buffers_are_ignored(directory: Path) -> None:
    expected = load_model(directory)(PROMPT).logits
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(directory, lambda weights: weights.update({name: mx.zeros((8,))}))
    assert relative_error(load_model(directory)(PROMPT).logits, expected) == 0


def remove_one(weights: dict[str, mx.array]) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def add_one(weights: dict[str, mx.array]) -> None:
    weights["model.layers.3.mlp.up_proj.weight"] = mx.zeros((96, 64))


def reshape_one(weights: dict[str, mx.array]) -> None:
    weights["lm_head.weight"] = mx.zeros((95, 64))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (remove_one, r"missing: model\.layers\.1\.mlp\.up_proj\.weight \[96, 64\]"),
        (add_one, r"no place for: model\.layers\.3\.mlp\.up_proj\.weight \[96, 64\]"),
        (reshape_one, r"lm_head\.weight is \[95, 64\], expected \[96, 64\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    directory: Path, change: Callable[[dict[str, mx.array]], object], said: str
) -> None:
    rewrite(directory, change)
    with pytest.raises(CheckpointError, match=said):
        load_model(directory)


def test_a_config_that_asks_for_a_huge_model_allocates_nothing(directory: Path) -> None:
    huge = config_values(num_hidden_layers=2**31 - 1, vocab_size=2**31 - 1)
    (directory / "config.json").write_text(json.dumps(huge))
    before = mx.get_peak_memory()
    with pytest.raises(CheckpointError, match="missing"):
        load_model(directory)
    assert mx.get_peak_memory() - before < 1_000_000


def test_integers_are_no_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    weights = random_weights(HeliumConfig.from_json_file(directory / "config.json"))
    mx.save_safetensors(str(path), weights | {"lm_head.weight": mx.zeros((96, 64), mx.int32)})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is I32"):
        load_model(directory)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "model.bin", "..", 3, None]
)
def test_a_shard_name_that_leads_elsewhere_is_refused(directory: Path, name: object) -> None:
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": name}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"bare name|not an index"):
        open_checkpoint(directory)


def test_a_shard_that_is_not_there_is_named(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        open_checkpoint(directory)


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": 3}', '{"weight_map": {}}x', "[" * 10**5])
def test_an_index_that_is_none_is_refused(directory: Path, content: str) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="not an index"):
        open_checkpoint(directory)


def test_one_file_comes_before_older_shards_which_a_warning_names(directory: Path) -> None:
    expected = load_model(directory)(PROMPT).logits
    weights = random_weights(HeliumConfig.from_json_file(directory / "config.json"))
    write_shards(directory, {name: mx.zeros_like(tensor) for name, tensor in weights.items()})
    with pytest.warns(UserWarning, match=r"index\.json, model-00001-of-00003.*left out"):
        assert mx.array_equal(load_model(directory)(PROMPT).logits, expected)
    for shard in directory.glob("model-*"):
        shard.unlink()
    with pytest.warns(UserWarning, match=r"index\.json left out"):
        assert mx.array_equal(load_model(directory)(PROMPT).logits, expected)


@pytest.mark.filterwarnings("error")
def test_an_index_of_the_one_file_is_not_older(directory: Path) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    open_checkpoint(directory)


def test_an_index_may_still_name_a_tied_head(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, **CASES["helium-mqa-tied"])
    expected = load_model(directory)(PROMPT).logits
    (directory / "model.safetensors").unlink()
    write_shards(directory, random_weights(HeliumConfig.from_json_file(directory / "config.json")))
    index = directory / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map["lm_head.weight"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert mx.array_equal(load_model(directory)(PROMPT).logits, expected)


def test_dense_weights_with_a_leftover_quantization_config_are_read_with_a_warning(directory: Path) -> None:
    expected = load_model(directory)(PROMPT).logits
    values = config_values(quantization_config={"quant_method": "gptq", "bits": 4})
    (directory / "config.json").write_text(json.dumps(values))
    with pytest.warns(UserWarning, match="quantization_config of 'gptq' left out"):
        model = load_model(directory)
    assert mx.array_equal(model(PROMPT).logits, expected)
    assert "quantization_config" not in model.config.to_dict()


def test_weights_that_another_program_quantized_are_refused_by_its_name(directory: Path) -> None:
    values = config_values(quantization_config={"quant_method": "gptq", "bits": 4})
    (directory / "config.json").write_text(json.dumps(values))
    rewrite(directory, lambda weights: weights.update({"model.layers.0.mlp.up_proj.qweight": mx.zeros((8, 64))}))
    with pytest.raises(ConfigError, match=r"config\.json: quantization_config names quant_method 'gptq'"):
        open_checkpoint(directory)


def test_weights_that_are_rounded_when_they_are_used_are_not_read_as_dense(directory: Path) -> None:
    values = config_values(quantization_config={"quant_method": "bitnet", "quantization_mode": "online"})
    (directory / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="bitnet"):
        open_checkpoint(directory)


def test_a_generation_config_that_cannot_be_read_is_left_out_with_a_warning(directory: Path) -> None:
    (directory / "generation_config.json").write_text("{")
    with pytest.warns(UserWarning, match=r"generation_config\.json is not JSON"):
        model = load_model(directory)
    assert model.generation_config.eos_token_id == 2


def test_an_adapter_beside_the_weights_is_not_applied_and_a_warning_says_so(directory: Path, tmp_path: Path) -> None:
    """transformers 5 applies it where peft is installed (`integrations.peft.maybe_load_adapters`)."""
    before = load_model(directory)(mx.arange(9)[None]).logits
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "a/b", "r": 8}))
    write_tensors(directory / "adapter_model.safetensors", {"base_model.model.x.lora_A.weight": mx.ones((1, 2))})
    (said,) = open_checkpoint(directory).warnings
    assert said.startswith("adapter_config.json left out: its adapter is not applied, as transformers does where peft")
    with pytest.warns(UserWarning, match="adapter is not applied"):
        assert mx.array_equal(load_model(directory)(mx.arange(9)[None]).logits, before)


@pytest.mark.parametrize("has_config", [True, False])
@pytest.mark.parametrize(
    ("files", "base"),
    [
        ({"adapter_config.json": {"base_model_name_or_path": "a/b"}, "adapter_model.safetensors": None}, "a/b"),
        ({"adapter_config.json": {"model": "a/b", "fine_tune_type": "lora"}, "adapters.safetensors": None}, "a/b"),
        ({"adapter_config.json": {}, "adapter_model.bin": None}, None),
        ({"adapters.safetensors": None}, None),
    ],
)
def test_an_adapter_without_a_model_is_refused_by_what_it_is(
    directory: Path, files: dict[str, object], base: str | None, has_config: bool
) -> None:
    (directory / "model.safetensors").unlink()
    if not has_config:
        (directory / "config.json").unlink()
    for name, values in files.items():
        (directory / name).write_text(json.dumps(values))
    for read in (open_checkpoint, load_model, helium_mlx.HeliumForCausalLM.from_pretrained):
        with pytest.raises(CheckpointError) as caught:
            read(directory)
        into = f"its base model, '{base}'," if base else "its base model"
        expected = f"holds an adapter ({', '.join(files)}) and no weights of a model; merge it into {into} with peft's"
        assert str(caught.value).startswith(f"{directory}: {expected}")


def test_a_tensor_in_two_shards_is_refused(directory: Path) -> None:
    weights = random_weights(HeliumConfig.from_json_file(directory / "config.json"))
    (directory / "model.safetensors").unlink()
    write_shards(directory, weights)
    write_tensors(directory / "model-00002-of-00003.safetensors", weights)
    with pytest.raises(CheckpointError, match="in two files"):
        open_checkpoint(directory)


def test_a_directory_with_pickles_only_says_what_is_read(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*only safetensors"):
        open_checkpoint(directory)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        open_checkpoint(tmp_path / "nowhere")


def test_an_unknown_dtype_is_refused(directory: Path) -> None:
    with pytest.raises(ConfigError, match="float64"):
        load_model(directory, dtype="float64")


def test_thousands_of_tensors_are_refused_without_delay(directory: Path) -> None:
    tensors = {f"a{index}": mx.zeros((1,)) for index in range(5000)}
    mx.save_safetensors(str(directory / "model.safetensors"), tensors)
    calls = 0
    original = checkpoint_module._is_head

    def counted(name: str) -> bool:
        nonlocal calls
        calls += 1
        return original(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_module, "_is_head", counted)
        with pytest.raises(CheckpointError, match="missing"):
            open_checkpoint(directory)
    assert calls < 5 * len(tensors)


def loaded_bytes(directory: Path, dtype: str | None) -> int:
    return sum(tensor.nbytes for tensor in load_model(directory, dtype=dtype).tensors().values())


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_the_bytes_of_the_weights_are_known_before_they_are_read(tmp_path: Path, name: str, dtype: str | None) -> None:
    directory = write_checkpoint(tmp_path, **CASES[name])
    assert weight_bytes(open_checkpoint(directory), dtype) == loaded_bytes(directory, dtype)


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_bytes_of_quantized_weights_are_known_too(tmp_path: Path, mode: str, dtype: str | None) -> None:
    directory = tmp_path / "packed"
    convert("demo", str(directory), quantize=True, q_mode=mode, verify=False)
    assert weight_bytes(open_checkpoint(directory), dtype) == loaded_bytes(directory, dtype)
