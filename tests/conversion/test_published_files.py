"""What goes into a converted directory beside weights: companions of the tokenizer, and no path of this machine."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import helium_mlx
from helium_mlx import HeliumForCausalLM, HeliumTokenizer
from helium_mlx.errors import TokenizerError
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.files.local_paths import without_local_paths
from helium_mlx.publishing.publication import publication

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


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of somebody who is in a working directory beside it."""
    home, work = tmp_path / "home of jane", tmp_path / "working"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    return home


def require_no_path(files: dict[str, bytes], *directories: Path) -> None:
    """Look for directories in every byte of what is published."""
    found = {name for name, data in files.items() for path in directories if str(path).encode() in data}
    assert not found


def test_no_path_of_this_machine_is_written(tmp_path: Path, home: Path) -> None:
    work = Path.cwd()
    source = source_in(home, _name_or_path=str(work / "runs/checkpoint-500"), comment=f"from {home}/runs/7, tuned")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"name_or_path": str(home / "tuned")}))
    diary = home / "diary.txt"
    diary.write_text(" ".join(["Once upon a time there was a diary."] * 20))
    report = helium_mlx.convert(
        str(source), str(work / "x"), quantize=True, rounding="fitted", calibration_text=str(diary)
    )
    require_no_path(files_of(work / "x"), home, work, tmp_path)
    record = json.loads((work / "x/conversion.json").read_text())
    assert (record["source"], record["options"]["calibration_text"]) == ("tuned", "diary.txt")
    assert record["calibration"]["text"] == "diary.txt"
    config = json.loads((work / "x/config.json").read_text())
    assert (config["_name_or_path"], config["comment"]) == ("checkpoint-500", "from 7, tuned")
    assert "tokenizer_config.json named a path, of which the last part is left" in report.warnings
    # What the caller is told is what the caller said.
    assert report.source == str(source)


def test_no_path_of_this_machine_is_saved(tmp_path: Path, home: Path) -> None:
    source = source_in(home, _name_or_path=str(Path.cwd() / "runs/checkpoint-500"), comment=f"from {home}/runs/7")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"name_or_path": str(home / "tuned")}))
    generation = json.loads((source / "generation_config.json").read_text())
    (source / "generation_config.json").write_text(json.dumps(generation | {"cache_dir": str(home / "cache")}))
    model = HeliumForCausalLM.from_pretrained(source)
    model.save_pretrained(tmp_path / "model")
    model.config.save_pretrained(tmp_path / "config")
    HeliumTokenizer.from_pretrained(source).save_pretrained(tmp_path / "tokenizer")
    for name in ("model", "config", "tokenizer"):
        require_no_path(files_of(tmp_path / name), home, Path.cwd(), tmp_path)
    for name in ("model", "config"):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert (config["_name_or_path"], config["comment"]) == ("checkpoint-500", "from 7")
    assert json.loads((tmp_path / "model/generation_config.json").read_text())["cache_dir"] == "cache"
    saved = json.loads((tmp_path / "tokenizer/tokenizer_config.json").read_text())
    assert saved == settings | {"name_or_path": "tuned"}
    # In memory everything is as it was read.
    assert model.config.extra["_name_or_path"] == str(Path.cwd() / "runs/checkpoint-500")


def test_paths_that_an_earlier_version_wrote_are_not_uploaded(tmp_path: Path, home: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"))
    values = {"_name_or_path": str(home / "runs/7"), "options": {"calibration_text": str(home / "diary.txt")}}
    config = json.loads((tmp_path / "x/config.json").read_text()) | values
    (tmp_path / "x/config.json").write_text(json.dumps(config))
    record = json.loads((tmp_path / "x/conversion.json").read_text()) | values
    record["files"]["config.json"] = hashlib.sha256((tmp_path / "x/config.json").read_bytes()).hexdigest()
    (tmp_path / "x/conversion.json").write_text(json.dumps(record))
    files = publication(tmp_path / "x", "jane/x").files
    sent = {file.name: file.content if isinstance(file.content, bytes) else file.content.read_bytes() for file in files}
    require_no_path(sent, home)
    assert json.loads(sent["config.json"]) == config | {
        "_name_or_path": "7", "options": {"calibration_text": "diary.txt"}
    }  # fmt: skip
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sent.items() if name != "conversion.json"}
    assert json.loads(sent["conversion.json"])["files"] == hashes


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
        ({"comment": "../..HOME/x", "y": "from ..HOME/x/z and ./..HOME"}, {"comment": "x", "y": "from z and ."}),
        ("a..HOME/x", "a..HOME/x"),
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
    files = {file.name: file.content for file in publication(tmp_path / "x", "jane/x").files}
    assert json.loads(bytes(files["conversion.json"]))["source"] == "caf\udce9"


def test_no_settings_of_a_tokenizer_are_published_with_a_path(tmp_path: Path) -> None:
    source, path = source_in(tmp_path), str(Path.home() / "diary" / "x.txt")
    (source / "special_tokens_map.json").write_text(json.dumps({"note_path": path}))
    helium_mlx.convert(str(source), str(tmp_path / "x"))
    HeliumTokenizer.from_pretrained(source).save_pretrained(tmp_path / "saved")
    for written in (tmp_path / "x", tmp_path / "saved"):
        assert json.loads((written / "special_tokens_map.json").read_text())["note_path"] == "x.txt"


def test_no_template_is_published_with_a_path(tmp_path: Path, home: Path) -> None:
    source = source_in(tmp_path)
    template = "{# from " + str(home / "runs/mine.jinja") + " #}{{ messages[0]['content'] }}\r\n"
    (source / "additional_chat_templates").mkdir(exist_ok=True)
    names = ("chat_template.jinja", "additional_chat_templates/rag.jinja")
    for name in names:
        (source / name).write_bytes(template.encode() + b"\xff")
    expected = b"{# from mine.jinja #}{{ messages[0]['content'] }}\r\n\xff"
    report = helium_mlx.convert(str(source), str(tmp_path / "x"))
    HeliumTokenizer.from_pretrained(source).save_pretrained(tmp_path / "saved")
    for name in names:
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes() == expected
        assert f"{name} named a path, of which the last part is left" in report.warnings
    # As an earlier version wrote it.
    record = json.loads((tmp_path / "x/conversion.json").read_text())
    (tmp_path / "x" / names[0]).write_bytes(template.encode())
    record["files"][names[0]] = hashlib.sha256(template.encode()).hexdigest()
    (tmp_path / "x/conversion.json").write_text(json.dumps(record))
    files = {file.name: file.content for file in publication(tmp_path / "x", "jane/x").files}
    assert bytes(files[names[0]]) == expected[:-1]
