"""What `convert --overwrite` may delete."""

from pathlib import Path

import pytest

import helium_mlx
from helium_mlx.conversion.replaceable import foreign
from helium_mlx.errors import CheckpointError

MODEL = '{"model_type": "llama"}'


def folder(path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


@pytest.mark.parametrize(
    "files",
    {
        "JSON alone": {"config.json": MODEL, "tokenizer.json": "{}"},
        "weights alone": {"model.safetensors": ""},
        "a card alone": {"README.md": "Ten years of notes."},
        "settings of another program": {"config.json": '{"lr": 0.1}', "model.safetensors": ""},
        "a record of something else": {"conversion.json": '{"from": "EUR", "to": "USD"}'},
        "an adapter's": {"adapter_config.json": "{}", "adapters.safetensors": ""},
        "peft's": {"adapter_config.json": "{}", "adapter_model.safetensors": "", "README.md": ""},
        "an adapter in a checkpoint": {"config.json": MODEL, "model.safetensors": "", "adapters.safetensors": ""},
        "results in a checkpoint": {"config.json": MODEL, "model.safetensors": "", "results.json": "{}"},
        "a folder of that name": {"config.json": MODEL, "model.safetensors": "", "chat_template.jinja/x": ""},
        "notes among templates": {
            "config.json": MODEL,
            "model.safetensors": "",
            "additional_chat_templates/notes.txt": "",
        },
    }.items(),
    ids=lambda case: case[0],
)
def test_what_is_not_a_checkpoint_is_left_alone(tmp_path: Path, files: tuple[str, dict[str, str]]) -> None:
    home = folder(tmp_path / "home", files[1])
    before = sorted(home.rglob("*"))
    with pytest.raises(CheckpointError, match=r"^\S+/home (holds|has neither) .*, so overwrite=True leaves it alone;"):
        helium_mlx.convert("demo", str(home), overwrite=True)
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"config.json": MODEL, "model.safetensors": ""},
        {"config.json": MODEL, "model-00001-of-00002.safetensors": "", "model.safetensors.index.json": ""},
        {"config.json": MODEL, "model.safetensors": "", "chat_template.jinja": "", "added_tokens.json": "{}"},
        {"config.json": MODEL, "model.safetensors": "", "additional_chat_templates/tools.jinja": ""},
        {"conversion.json": '{"versions": {"helium_mlx": "0.1.0"}, "files": {}}', "README.md": ""},
    ],
)
def test_a_checkpoint_or_nothing_may_be_replaced(tmp_path: Path, files: dict[str, str]) -> None:
    (tmp_path / "home").mkdir()
    assert foreign(folder(tmp_path / "home", files)) is None


def test_what_mlx_lm_and_we_write_may_be_replaced(tmp_path: Path) -> None:
    from mlx_lm import convert

    helium_mlx.convert("demo", str(tmp_path / "source"))
    convert(str(tmp_path / "source"), str(tmp_path / "x"), quantize=True)
    assert foreign(tmp_path / "x") is None
    helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True, overwrite=True)
    helium_mlx.convert("demo", str(tmp_path / "x"), overwrite=True)
