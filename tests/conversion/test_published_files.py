"""What goes into a converted directory beside weights: companions of the tokenizer, and no path of this machine."""

import json
import os
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import helium_mlx
from helium_mlx.errors import TokenizerError
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.files.local_paths import without_local_paths

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def source_in(directory: Path, **changes: object) -> Path:
    source = shutil.copytree(DEMO_DIRECTORY, directory / "tuned")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    return source


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_what_transformers_saves_beside_a_tokenizer_is_copied_and_hashed(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    tokenizer.chat_template = {"default": TEMPLATE, "tools": f"tools: {TEMPLATE}"}
    tokenizer.save_pretrained(source)
    (source / "added_tokens.json").write_text("{}")
    (source / "vocab.json").write_text("{}")
    report = helium_mlx.convert(str(source), str(tmp_path / "x"), quantize=True)
    beside = ["chat_template.jinja", "additional_chat_templates/tools.jinja", "added_tokens.json", "vocab.json"]
    written, saved = files_of(tmp_path / "x"), files_of(source)
    assert {name: written[name] for name in beside} == {name: saved[name] for name in beside}
    assert set(beside) <= report.files.keys()
    assert set(beside) <= report.source_files.keys()
    assert AutoTokenizer.from_pretrained(tmp_path / "x").chat_template == tokenizer.chat_template
    assert "no chat template" not in written["README.md"].decode()
    helium_mlx.convert(str(source), str(tmp_path / "x"), overwrite=True)
    assert files_of(tmp_path / "x").keys() >= set(beside)


def test_a_template_that_is_a_link_out_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    (tmp_path / "secret").write_text("secret")
    (source / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja is a link to"):
        helium_mlx.convert(str(source), str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_no_path_of_this_machine_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, work = tmp_path / "home of jane", tmp_path / "working"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    source = source_in(home, _name_or_path=str(work / "runs/checkpoint-500"), comment=f"from {home}/runs/7, tuned")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"name_or_path": str(home / "tuned")}))
    diary = home / "diary.txt"
    diary.write_text(" ".join(["Once upon a time there was a diary."] * 20))
    report = helium_mlx.convert(
        str(source), str(work / "x"), quantize=True, rounding="fitted", calibration_text=str(diary)
    )
    for name, data in files_of(work / "x").items():
        assert str(home).encode() not in data, name
        assert str(work).encode() not in data, name
        assert str(tmp_path).encode() not in data, name
    record = json.loads((work / "x/conversion.json").read_text())
    assert (record["source"], record["options"]["calibration_text"]) == ("tuned", "diary.txt")
    assert record["calibration"]["text"] == "diary.txt"
    config = json.loads((work / "x/config.json").read_text())
    assert (config["_name_or_path"], config["comment"]) == ("checkpoint-500", "from 7, tuned")
    assert "tokenizer_config.json named a path, of which the last part is left" in report.warnings
    # What the caller is told is what the caller said.
    assert report.source == str(source)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"_name_or_path": "/mnt/data/runs/7"}, {"_name_or_path": "7"}),
        ({"_name_or_path": "../runs/7/"}, {"_name_or_path": "7"}),
        ({"_name_or_path": "~jane/runs/7"}, {"_name_or_path": "7"}),
        ({"_name_or_path": "C:\\Users\\Jane\\model"}, {"_name_or_path": "model"}),
        ({"tokenizer_file": "file:///home/jane/t.json"}, {"tokenizer_file": "t.json"}),
        ({"_name_or_path": "kyutai/helium-1-2b"}, {"_name_or_path": "kyutai/helium-1-2b"}),
        ({"content": "/no_think"}, {"content": "/no_think"}),
        ({"bos_token": "</s>", "n": 1.5, "x": None}, {"bos_token": "</s>", "n": 1.5, "x": None}),
        ("see HOME", "see ."),
        ("see HOME/a/b.txt, and HOMEly", "see b.txt, and HOMEly"),
        (["https://huggingface.coHOME/x"], ["https://huggingface.coHOME/x"]),
        ({"HOME/a": {"deep": ["HOME/b"]}}, {"a": {"deep": ["b"]}}),
    ],
)
def test_paths_are_told_from_other_text(given: object, expected: object) -> None:
    def filled(value: object) -> object:
        return json.loads(json.dumps(value).replace("HOME", os.path.expanduser("~")))

    assert without_local_paths(filled(given)) == filled(expected)


def test_half_a_character_in_a_config_reaches_the_result_as_it_is(tmp_path: Path) -> None:
    source = source_in(tmp_path, comment="\ud800")
    helium_mlx.convert(str(source), str(tmp_path / "x"))
    assert json.loads((tmp_path / "x/config.json").read_text())["comment"] == "\ud800"


def test_a_name_that_is_not_utf_8_becomes_a_record(tmp_path: Path) -> None:
    source = source_in(tmp_path).rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    helium_mlx.convert(str(source), str(tmp_path / "x"))
    assert json.loads((tmp_path / "x/conversion.json").read_text())["source"] == "caf\udce9"
