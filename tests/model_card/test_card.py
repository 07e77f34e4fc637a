import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from card_samples import CARD_OF_1_2B, HELIUM_1_2B, PREVIEW, TINY
from huggingface_hub import ModelCard
from tiny_checkpoints import CASES, write_checkpoint

import helium_mlx
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.model_card.card import CardFacts, model_card, with_repository

FACTS = CardFacts(
    name="helium-4bit",
    source="kyutai/helium-1-2b",
    revision="0123abc",
    recipe=None,
    bits_per_weight=4.5,
    for_transformers=False,
    architecture="ForCausalLM",
    warnings=(),
    total_bytes=1_140_000_000,
)
QUANTIZATION: dict[str, object] = {"bits": 4, "group_size": 64, "mode": "affine"}


def hub_snapshot(tmp_path: Path, repo: str, text: str) -> Path:
    directory = tmp_path / f"models--{repo.replace('/', '--')}" / "snapshots" / "0123abc"
    directory.mkdir(parents=True)
    (directory / "README.md").write_text(text)
    return directory


def card_of(directory: Path, config: HeliumConfig, **changes: object) -> str:
    return model_card(replace(FACTS, **changes), directory, replace(config, quantization=QUANTIZATION))  # pyright: ignore[reportArgumentType]


def metadata(text: str) -> dict[str, object]:
    return ModelCard(text).data.to_dict()


def test_the_card_says_how_bits_were_chosen_and_rounded(tmp_path: Path) -> None:
    directory = hub_snapshot(tmp_path, "kyutai/helium-1-2b", CARD_OF_1_2B)
    mixed = QUANTIZATION | {"lm_head": {"bits": 6, "group_size": 64, "mode": "affine"}, "model.embed_tokens": False}
    facts = replace(FACTS, bits_per_weight=4.68, target_bpw=4.7, rounding="gptq")
    text = model_card(facts, directory, replace(HELIUM_1_2B, quantization=mixed))
    dealt = "4.68 bits per weight, 4 to 6 a module, by what each was measured to cost (`--target-bpw`)"
    assert f"{dealt}, rounded with GPTQ on calibration text (`--rounding gptq`)." in text
    assert "scales and biases fitted" in card_of(directory, HELIUM_1_2B, rounding="fitted")
    assert "`--rounding" not in card_of(directory, HELIUM_1_2B)


def test_the_card_of_helium_1_2b_has_all_that_the_hub_asks_for(tmp_path: Path) -> None:
    text = card_of(hub_snapshot(tmp_path, "kyutai/helium-1-2b", CARD_OF_1_2B), HELIUM_1_2B)
    assert metadata(text) == {
        "library_name": "mlx",
        "pipeline_tag": "text-generation",
        "tags": ["helium", "mlx"],
        "base_model": "kyutai/helium-1-2b",
        "base_model_relation": "quantized",
        "license": "cc-by-sa-4.0",
        "language": ["bg", "cs"],
    }
    assert "Gemma Terms of Use" in text
    assert "CC-BY-SA 4.0" in text
    assert "at revision [`0123abc`](https://huggingface.co/kyutai/helium-1-2b/tree/0123abc)" in text


@pytest.mark.parametrize("way", [{"dequantize": True}, {"to": "hf"}])
def test_a_dequantized_checkpoint_says_which_bits_its_weights_went_through(
    tmp_path: Path, way: dict[str, object]
) -> None:
    helium_mlx.convert("demo", str(tmp_path / "q"), quantize=True, q_bits=8)
    helium_mlx.convert(str(tmp_path / "q"), str(tmp_path / "x"), **way)  # pyright: ignore[reportArgumentType]
    said = ", dequantized from 8 bits a weight, and so no nearer to the original than those were.\n"
    assert said in (tmp_path / "x/README.md").read_text()
    mixed = QUANTIZATION | {"lm_head": {"bits": 6, "group_size": 64, "mode": "affine"}, "model.embed_tokens": False}
    assert "from 4 to 6 bits a weight" in model_card(replace(FACTS, dequantized_from=mixed), tmp_path, TINY)
    helium_mlx.convert("demo", str(tmp_path / "plain"))
    assert "dequantized" not in (tmp_path / "plain/README.md").read_text()


def test_the_card_of_the_preview_names_six_languages(tmp_path: Path) -> None:
    text = card_of(hub_snapshot(tmp_path, "kyutai/helium-1-preview-2b", "# no metadata\n"), PREVIEW)
    assert metadata(text)["language"] == ["en", "fr", "de", "it", "pt", "es"]
    assert metadata(text)["license"] == "cc-by-4.0"
    assert "emma" not in text


@pytest.mark.parametrize(
    "lines",
    [
        "license: other\nlicense_name: 'a: b'\nlicense_link: LICENSE",
        "license: other\nlicense_details: |\n  two: lines\n  --- of text\n",
        "license:\n- mit\n- gemma\nlanguage:\n- no\n- 'y'",
        'license: "mit"\nlanguage: [fr, "de"]',
    ],
)
def test_what_the_sources_card_says_of_its_licence_comes_out_equal(tmp_path: Path, lines: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{lines}\n---\n# x\n")
    found = re.match(r"---\n(.*?)\n---\n", card_of(tmp_path, TINY), re.DOTALL)
    assert found
    expected = yaml.load(lines, Loader=yaml.BaseLoader)
    assert {key: value for key, value in yaml.safe_load(found[1]).items() if key in expected} == expected


def test_a_card_passes_the_hubs_own_validation_as_far_as_it_is_offline(tmp_path: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True)
    card = ModelCard.load(tmp_path / "x/README.md")
    assert card.data.get("library_name") == "mlx"
    assert card.text.lstrip().startswith("# x\n")


def test_a_local_source_is_no_base_model_and_no_path_is_told(tmp_path: Path) -> None:
    text = card_of(tmp_path, TINY, source="/home/alice/weights", revision=None)
    assert "base_model" not in metadata(text)
    assert "from `weights` with" in text
    assert "alice" not in text


def test_an_ancestor_is_a_base_model_without_a_relation(tmp_path: Path) -> None:
    config = replace(TINY, extra={"_name_or_path": "kyutai/helium-1-preview-2b"})
    found = metadata(card_of(tmp_path, config, source="weights", revision=None))
    assert found["base_model"] == "kyutai/helium-1-preview-2b"
    assert "base_model_relation" not in found


def test_what_is_not_quantized_is_no_quantized_model(tmp_path: Path) -> None:
    snapshot = hub_snapshot(tmp_path, "kyutai/helium-1-2b", CARD_OF_1_2B)
    found = metadata(model_card(FACTS, snapshot, HELIUM_1_2B))
    assert found["base_model"] == "kyutai/helium-1-2b"
    assert "base_model_relation" not in found


def test_memory_is_that_of_the_published_shapes(tmp_path: Path) -> None:
    text = card_of(tmp_path, HELIUM_1_2B)
    # 28 layers, 8 heads of 128 for keys and for values, 2 bytes: 114,688 bytes a token.
    for tokens, cache in ((1024, 117.4), (2048, 234.9), (4096, 469.8)):
        assert f"| {tokens:,} | {cache:,.0f} | {cache + 1140:,.0f} |" in text


def test_memory_ends_where_the_context_does(tmp_path: Path) -> None:
    assert "| 2,048 |" in card_of(tmp_path, replace(TINY, max_position_embeddings=2048))
    assert "| 4,096 |" not in card_of(tmp_path, replace(TINY, max_position_embeddings=2048))
    assert "| 512 |" in card_of(tmp_path, replace(TINY, max_position_embeddings=512))


def test_limits_and_bits_are_said(tmp_path: Path) -> None:
    text = card_of(tmp_path, TINY, warnings=["mlx-lm ignores this"])
    for expected in ("no chat template", "context is 4,096 tokens", "- mlx-lm ignores this.", "4.50 bits per weight"):
        assert expected in text


def test_a_source_whose_metadata_cannot_be_read_is_a_limit(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert "- the metadata of the source's card cannot be read; look its licence up" in card_of(tmp_path, TINY)


def test_without_a_comparison_the_card_says_how_to_make_one(tmp_path: Path) -> None:
    expected = "helium_mlx.compare --reference kyutai/helium-1-2b --candidate helium-4bit\n"
    assert expected in card_of(tmp_path, TINY)


@pytest.mark.parametrize("name", ["tiny", "it's mine", 'a "b" c', "x`y", "ü", "-x", "somebody/else"])
def test_a_repository_takes_the_place_of_any_directorys_name(tmp_path: Path, name: str) -> None:
    text = with_repository(card_of(tmp_path, TINY, name=name), "user/repo")
    assert text.count("--model user/repo --prompt") == 2
    assert 'helium_mlx.load("user/repo")' in text
    assert '.init(id: "user/repo")' in text
    assert "--candidate user/repo\n" in text
    assert "\n# repo\n" in text
    assert with_repository(text, "user/repo") == text
    assert text == with_repository(card_of(tmp_path, TINY, name="other"), "user/repo")


def test_the_commands_of_a_card_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    helium_mlx.convert("demo", "it's mine", quantize=True)
    text = (tmp_path / "it's mine/README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code
    exec(code[1], {})
    assert capsys.readouterr().out.strip()
    line = next(line for line in text.splitlines() if line.startswith("python -m helium_mlx.generate "))
    import shlex

    from helium_mlx.generate import main

    assert main([*shlex.split(line)[3:], "-m", "3"]) == 0


def test_a_classifier_is_shown_no_commands_for_text(tmp_path: Path) -> None:
    text = card_of(tmp_path, TINY, architecture="ForSequenceClassification")
    assert "--model" not in text
    assert "pipeline_tag" not in text


def test_licence_files_are_converted_recorded_and_verified(tmp_path: Path) -> None:
    source = Path(shutil.copytree(DEMO_DIRECTORY, tmp_path / "source"))
    (source / "LICENSE").write_text("terms")
    (source / "README.md").write_text("---\nlicense: gemma\n---\n")
    helium_mlx.convert(str(source), str(tmp_path / "x"))
    record = json.loads((tmp_path / "x/conversion.json").read_text())
    assert (tmp_path / "x/LICENSE").read_text() == "terms"
    assert record["files"]["LICENSE"] == record["source_files"]["LICENSE"]
    assert "Gemma" in (tmp_path / "x/NOTICE").read_text()
    assert "NOTICE" in record["files"]
    again = helium_mlx.convert(str(tmp_path / "x"), str(tmp_path / "y"), quantize=True)
    assert again.files["NOTICE"] == record["files"]["NOTICE"]
    text = (tmp_path / "y/README.md").read_text()
    assert "license: gemma" in text
    assert text.count("Gemma Terms") == (tmp_path / "x/README.md").read_text().count("Gemma Terms")


def test_every_kind_of_model_gets_a_valid_card(tmp_path: Path) -> None:
    for name, values in CASES.items():
        directory = write_checkpoint(tmp_path / name, **values)
        config = HeliumConfig.from_pretrained(directory)
        assert metadata(card_of(directory, config))["tags"] == ["helium", "mlx"]


def test_a_card_says_of_a_chat_template_what_there_is(tmp_path: Path) -> None:
    assert "--ignore-chat-template" in card_of(tmp_path, TINY)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    text = card_of(tmp_path, TINY)
    assert "--ignore-chat-template" not in text
    assert "A base model" not in text
    assert "- A chat template came with it" in text
