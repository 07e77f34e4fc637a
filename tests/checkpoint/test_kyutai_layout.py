"""Kyutai's layout against transformers': the same weights in both; the writer here knows nothing of the reader."""

import json
import re
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from safetensors import safe_open
from tiny_checkpoints import write_checkpoint

import helium_mlx
from helium_mlx import HeliumForSequenceClassification
from helium_mlx.checkpoint.checkpoint import open_checkpoint
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import CheckpointError, TokenizerError
from helium_mlx.files.hashes import file_hashes
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.generate import main as generate
from helium_mlx.model.loading import load_model
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

VOCAB_SIZE = HeliumConfig.from_json_file(DEMO_DIRECTORY / "config.json").vocab_size
FILE = "helium-1-preview-2b-bf16.safetensors"
TOKENIZER = "tokenizer_spm_48k_multi6_2.model"
PROMPT = mx.array([[1, 10, 20, 30, 40, 50]])

# What the preview has, and the files in Kyutai's layout do not say.
PREVIEW: dict[str, object] = {
    "rms_norm_eps": 1e-8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    "max_position_embeddings": 4096,
}
SIZES: dict[str, object] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 128,
}

Tensors = dict[str, mx.array]


def load_tensors(path: Path) -> Tensors:
    tensors = mx.load(str(path))
    assert isinstance(tensors, dict)
    mx.eval(tensors)  # the file may be replaced
    return tensors


def kyutai_tensors(tensors: Tensors, n_layers: int = 3) -> Tensors:
    """Transformers' tensors as Kyutai's import script lays them out."""
    renamed = {
        "text_emb.weight": tensors["model.embed_tokens.weight"],
        "text_linear.weight": tensors["lm_head.weight"],
        "out_norm.weight": tensors["model.norm.weight"],
    }
    for n in range(n_layers):
        old = {name.removeprefix(f"model.layers.{n}."): tensor for name, tensor in tensors.items()}
        q, k, v = (old[f"self_attn.{part}_proj.weight"] for part in "qkv")
        renamed |= {
            f"transformer.layers.{n}.norm1.weight": old["input_layernorm.weight"],
            f"transformer.layers.{n}.norm2.weight": old["post_attention_layernorm.weight"],
            f"transformer.layers.{n}.self_attn.in_proj.weight": mx.concatenate([q, k, v]),
            f"transformer.layers.{n}.self_attn.out_proj.weight": old["self_attn.o_proj.weight"],
            f"transformer.layers.{n}.gating.linear_in.weight": mx.concatenate(
                [old["mlp.gate_proj.weight"], old["mlp.up_proj.weight"]]
            ),
            f"transformer.layers.{n}.gating.linear_out.weight": old["mlp.down_proj.weight"],
        }
    return renamed


def kyutai_quantized(tensors: Tensors, bits: int, group_size: int) -> Tensors:
    """What `mlx.nn.quantize` makes of Kyutai's model: every matrix, the embedding too."""
    quantized: Tensors = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            quantized[name] = tensor
            continue
        parts = zip(("weight", "scales", "biases"), mx.quantize(tensor, group_size, bits), strict=True)
        quantized |= {name.replace("weight", suffix): part for suffix, part in parts}
    return quantized


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def pair(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """One model in transformers' layout and in Kyutai's, with the demo's tokenizer."""
    return write_pair(tmp_path_factory.mktemp(request.param), request.param)


def write_pair(directory: Path, dtype: str = "bfloat16", **overrides: object) -> tuple[Path, Path]:
    theirs = write_checkpoint(directory / "transformers", **SIZES, **PREVIEW, dtype=dtype, **overrides)
    shutil.copyfile(DEMO_DIRECTORY / "tokenizer.model", theirs / "tokenizer.model")
    kyutais = directory / "kyutai"
    kyutais.mkdir()
    mx.save_safetensors(str(kyutais / FILE), kyutai_tensors(load_tensors(theirs / "model.safetensors")))
    shutil.copyfile(DEMO_DIRECTORY / "tokenizer.model", kyutais / TOKENIZER)
    return theirs, kyutais


def logits_of(directory: Path) -> mx.array:
    return load_model(directory)(PROMPT).logits


def rewrite(path: Path, changes: dict[str, mx.array | None]) -> None:
    tensors = load_tensors(path) | changes
    mx.save_safetensors(str(path), {name: tensor for name, tensor in tensors.items() if tensor is not None})


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(directory)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_logits_are_those_of_transformers_layout_to_the_bit(pair: tuple[Path, Path]) -> None:
    theirs, kyutais = map(logits_of, pair)
    assert mx.array_equal(theirs, kyutais)
    assert mx.abs(kyutais).max().item() > 0.1  # pyright: ignore[reportOperatorIssue]


def test_the_config_is_the_previews_in_the_size_of_the_shapes(pair: tuple[Path, Path]) -> None:
    theirs, kyutais = (open_checkpoint(directory).config for directory in pair)
    theirs.extra = {}
    assert kyutais == theirs
    assert HeliumConfig.from_pretrained(pair[1]) == kyutais


def test_sizes_and_bytes_of_the_preview_itself() -> None:
    config = HeliumConfig()
    assert (config.num_attention_heads, config.head_dim, config.max_position_embeddings) == (20, 128, 4096)
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"]) == (1e-8, 100_000)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 3)
    assert config.model_type == "helium"


def test_any_file_name_will_do(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("model.safetensors", "x.safetensors"):
        shutil.copytree(pair[1], tmp_path / name)
        (tmp_path / name / FILE).rename(tmp_path / name / name)
        assert open_checkpoint(tmp_path / name).is_kyutai


def test_the_tokenizer_has_the_previews_ids(pair: tuple[Path, Path]) -> None:
    theirs, kyutais = map(HeliumTokenizer.from_pretrained, pair)
    assert (kyutais.bos_token_id, kyutais.eos_token_ids, kyutais.pad_token_id) == (1, (2,), 3)
    text = "Il était une fois une fille qui s'appelait Zoé."
    assert kyutais.encode(text) == theirs.encode(text)
    assert [path.name for path in kyutais.files] == [TOKENIZER]


def test_the_command_generates_from_it(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for directory in pair:
        assert generate(["--model", str(directory), "--prompt", "Bonjour", "--max-tokens", "5"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].strip()


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "float16"}, {"quantize": True}, {"recipe": "mixed_3_6"}, {"to": "hf"}, {"max_shard_size": 400_000}],
)
def test_conversions_are_those_of_transformers_layout_to_the_byte(
    pair: tuple[Path, Path], tmp_path: Path, options: dict[str, object]
) -> None:
    written = []
    for directory, name in zip(pair, ("a", "b"), strict=True):
        helium_mlx.convert(str(directory), str(tmp_path / name), **options)  # pyright: ignore[reportArgumentType]
        written.append(file_hashes(sorted((tmp_path / name).glob("*.safetensors*"))))
    assert written[0] == written[1]
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in "ab"]
    assert configs[0] == configs[1]
    assert (tmp_path / "b" / TOKENIZER).is_file()


def test_a_conversion_is_written_in_transformers_layout_and_opens(pair: tuple[Path, Path], tmp_path: Path) -> None:
    report = helium_mlx.convert(str(pair[1]), str(tmp_path / "x"))
    assert sorted(report.source_files) == [FILE, TOKENIZER]
    with safe_open(tmp_path / "x/model.safetensors", "np") as file:
        assert set(file.keys()) == set(load_tensors(pair[0] / "model.safetensors"))
    assert mx.array_equal(logits_of(tmp_path / "x"), logits_of(pair[0]))


@pytest.mark.parametrize(("bits", "group_size"), [(4, 64), (8, 32), (3, 128)])
def test_quantized_files_are_read_too(tmp_path: Path, bits: int, group_size: int) -> None:
    theirs, kyutais = write_pair(tmp_path)
    tensors = kyutai_quantized(load_tensors(kyutais / FILE), bits, group_size)
    (kyutais / FILE).unlink()
    mx.save_safetensors(str(kyutais / f"helium-1-preview-2b-q{bits}.safetensors"), tensors)
    assert open_checkpoint(kyutais).config.quantization == {"bits": bits, "group_size": group_size, "mode": "affine"}
    helium_mlx.convert(str(theirs), str(tmp_path / "x"), quantize=True, q_bits=bits, q_group_size=group_size)
    assert mx.array_equal(logits_of(kyutais), logits_of(tmp_path / "x"))
    model = load_model(kyutais)
    assert isinstance(model.model.layers[0].self_attn.qkv_proj, nn.QuantizedLinear)


def test_a_quantized_file_is_converted_as_if_it_came_from_here(tmp_path: Path) -> None:
    theirs, kyutais = write_pair(tmp_path)
    mx.save_safetensors(str(kyutais / FILE), kyutai_quantized(load_tensors(kyutais / FILE), 4, 32))
    helium_mlx.convert(str(theirs), str(tmp_path / "q"), quantize=True, q_group_size=32)
    written = []
    for source, name in ((tmp_path / "q", "a"), (kyutais, "b")):
        helium_mlx.convert(str(source), str(tmp_path / name), dequantize=True)
        written.append(file_hashes([tmp_path / name / "model.safetensors"]))
    assert written[0] == written[1]


def test_a_config_beside_a_quantized_file_need_not_mention_it(tmp_path: Path) -> None:
    theirs, kyutais = write_pair(tmp_path)
    mx.save_safetensors(str(kyutais / FILE), kyutai_quantized(load_tensors(kyutais / FILE), 4, 32))
    alone = logits_of(kyutais)
    shutil.copyfile(theirs / "config.json", kyutais / "config.json")
    assert mx.array_equal(logits_of(kyutais), alone)


def test_a_quantization_that_shapes_do_not_tell_is_refused(tmp_path: Path) -> None:
    _, kyutais = write_pair(tmp_path)
    tensors = load_tensors(kyutais / FILE)
    mx.save_safetensors(str(kyutais / FILE), kyutai_quantized(tensors, 4, 32) | {"text_emb.scales": mx.zeros((3, 5))})
    assert re.search(r"text_emb\.weight is .* do not follow; take the unquantized file", refusal(kyutais))
    mixed = kyutai_quantized(tensors, 4, 32)
    other = kyutai_quantized({"text_linear.weight": tensors["text_linear.weight"]}, 8, 32)
    mx.save_safetensors(str(kyutais / FILE), mixed | other)
    assert re.search(r"text_linear\.weight is .* do not follow as from the rest", refusal(kyutais))
    without_biases = {name: tensor for name, tensor in mixed.items() if name != "out_norm.biases"}
    del without_biases["transformer.layers.1.gating.linear_in.biases"]
    mx.save_safetensors(str(kyutais / FILE), without_biases)
    assert "transformer.layers.1.gating.linear_in.biases" in refusal(kyutais)


def test_a_config_beside_it_counts(tmp_path: Path) -> None:
    theirs, kyutais = write_pair(tmp_path, eos_token_id=7)
    values = json.loads((theirs / "config.json").read_text()) | {"rope_theta": 10.0}
    del values["rope_parameters"]
    for directory in (theirs, kyutais):
        (directory / "config.json").write_text(json.dumps(values))
    assert open_checkpoint(kyutais).config == open_checkpoint(theirs).config
    assert mx.array_equal(logits_of(kyutais), logits_of(theirs))
    assert HeliumTokenizer.from_pretrained(kyutais).eos_token_ids == (7,)


def test_a_config_may_ask_for_grouped_queries_and_other_heads(tmp_path: Path) -> None:
    sizes = {**SIZES, **PREVIEW, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}
    theirs = write_checkpoint(tmp_path / "theirs", **sizes)
    kyutais = tmp_path / "kyutais"
    kyutais.mkdir()
    mx.save_safetensors(str(kyutais / FILE), kyutai_tensors(load_tensors(theirs / "model.safetensors")))
    shutil.copyfile(theirs / "config.json", kyutais / "config.json")
    assert mx.array_equal(logits_of(kyutais), logits_of(theirs))


def test_a_config_that_asks_for_more_layers_is_refused(tmp_path: Path) -> None:
    theirs, kyutais = write_pair(tmp_path)
    values = json.loads((theirs / "config.json").read_text()) | {"num_hidden_layers": 2**31 - 1}
    (kyutais / "config.json").write_text(json.dumps(values))
    assert "transformer.layers.3.norm1.weight [256] is missing" in refusal(kyutais)


@pytest.mark.parametrize(
    "name",
    [
        "text_emb.weight",
        "text_linear.weight",
        "out_norm.weight",
        "transformer.layers.0.self_attn.in_proj.weight",
        "transformer.layers.0.gating.linear_in.weight",
        "transformer.layers.1.norm2.weight",
        "transformer.layers.2.gating.linear_out.weight",
    ],
)
def test_a_missing_tensor_is_named_as_kyutai_does(tmp_path: Path, name: str) -> None:
    _, kyutais = write_pair(tmp_path)
    rewrite(kyutais / FILE, {name: None})
    assert re.search(rf": {re.escape(name)} (\[[\d, ]+\] )?is missing", refusal(kyutais))


def test_a_layer_that_was_left_out_is_named(tmp_path: Path) -> None:
    _, kyutais = write_pair(tmp_path)
    names = [name for name in load_tensors(kyutais / FILE) if name.startswith("transformer.layers.1.")]
    rewrite(kyutais / FILE, dict.fromkeys(names))
    assert "transformer.layers.1.norm1.weight [256] is missing" in refusal(kyutais)


@pytest.mark.parametrize(
    "name",
    [
        "depformer.slices.0.emb.weight",
        "transformer.layers.0.self_attn.in_proj.bias",
        "transformer.layers.01.norm1.weight",
        "model.norm.weight",
    ],
)
def test_an_extra_tensor_is_named(tmp_path: Path, name: str) -> None:
    _, kyutais = write_pair(tmp_path)
    rewrite(kyutais / FILE, {name: mx.zeros((768,))})
    assert f"holds {name}, which a Helium of Kyutai's layout does not have" in refusal(kyutais)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("transformer.layers.0.self_attn.in_proj.weight", (767, 256), "is [767, 256], expected [768, 256]"),
        ("transformer.layers.1.self_attn.out_proj.weight", (256, 128), "is [256, 128], expected [256, 256]"),
        ("transformer.layers.0.gating.linear_in.weight", (769, 256), "is [769, 256], expected [768, 256]"),
        ("transformer.layers.2.gating.linear_in.weight", (384, 256), "is [384, 256], expected [768, 256]"),
        ("transformer.layers.2.norm1.weight", (1, 256), "is [1, 256], expected [256]"),
        ("text_linear.weight", (), f"is [], expected [{VOCAB_SIZE}, 256]"),
        ("text_emb.weight", (), "is [], which has no rows"),
        ("out_norm.weight", (0,), "is [0], which has no rows"),
    ],
)
def test_a_misshaped_tensor_is_named(tmp_path: Path, name: str, shape: tuple[int, ...], said: str) -> None:
    _, kyutais = write_pair(tmp_path)
    rewrite(kyutais / FILE, {name: mx.zeros(shape, mx.bfloat16)})
    assert f"{name} {said}" in refusal(kyutais)


def test_a_width_that_is_no_number_of_heads_is_refused(tmp_path: Path) -> None:
    sizes = {**SIZES, **PREVIEW, "hidden_size": 192, "num_attention_heads": 2, "head_dim": 96}
    theirs = write_checkpoint(tmp_path / "theirs", **sizes)
    kyutais = tmp_path / "kyutais"
    kyutais.mkdir()
    mx.save_safetensors(str(kyutais / FILE), kyutai_tensors(load_tensors(theirs / "model.safetensors")))
    said = "out_norm.weight has 192 values, which heads of 128 do not divide; put the model's config.json beside it"
    assert said in refusal(kyutais)
    shutil.copyfile(theirs / "config.json", kyutais / "config.json")
    assert mx.array_equal(logits_of(kyutais), logits_of(theirs))


@pytest.mark.parametrize("with_config", [False, True])
def test_two_files_are_refused_by_name(tmp_path: Path, with_config: bool) -> None:
    theirs, kyutais = write_pair(tmp_path)
    shutil.copyfile(kyutais / FILE, kyutais / "helium-1-preview-2b-q4.safetensors")
    if with_config:
        shutil.copyfile(theirs / "config.json", kyutais / "config.json")
    said = refusal(kyutais)
    assert FILE in said
    assert "helium-1-preview-2b-q4.safetensors" in said
    if not with_config:
        with pytest.raises(TokenizerError, match=r"2 weight files .*keep the one to read"):
            HeliumTokenizer.from_pretrained(kyutais)


def test_a_vocabulary_too_small_for_the_ids_is_refused(tmp_path: Path) -> None:
    _, kyutais = write_pair(tmp_path)
    rewrite(
        kyutais / FILE, {name: mx.zeros((2, 256), mx.bfloat16) for name in ("text_emb.weight", "text_linear.weight")}
    )
    assert f"{FILE}: the shapes are not a Helium's: eos_token_id is 2" in refusal(kyutais)


def test_a_stranger_without_a_config_is_still_told_that_it_needs_one(tmp_path: Path) -> None:
    mx.save_safetensors(str(tmp_path / FILE), {"x": mx.zeros((1,))})
    assert "a checkpoint directory needs a config.json" in refusal(tmp_path)
    shutil.copyfile(DEMO_DIRECTORY / "config.json", tmp_path / "config.json")
    assert "neither model.safetensors nor model.safetensors.index.json is there" in refusal(tmp_path)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    _, kyutais = write_pair(tmp_path)
    data = (kyutais / FILE).read_bytes()
    (kyutais / FILE).write_bytes(data[:-2])
    assert "is cut short" in refusal(kyutais)
    (kyutais / FILE).write_bytes(data)
    checkpoint = open_checkpoint(kyutais)
    (kyutais / FILE).write_bytes(data[:-2])
    with pytest.raises(CheckpointError, match="was cut short while it was being read"):
        load_model(checkpoint)


def test_another_head_goes_on_top(pair: tuple[Path, Path]) -> None:
    with pytest.warns(UserWarning, match=r"score\.weight not there, so initialised.*lm_head\.weight left out"):
        model = HeliumForSequenceClassification.from_pretrained(pair[1], num_labels=3)
    assert model(PROMPT).logits.shape == (1, 3)
