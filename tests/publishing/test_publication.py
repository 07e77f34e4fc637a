import hashlib
import json
import shutil
from pathlib import Path

import pytest

import helium_mlx
from helium_mlx.errors import UploadError
from helium_mlx.publishing.publication import LocalFile, is_publishable, publication

REPO = "somebody/tiny"


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("publishable") / "tiny"
    helium_mlx.convert("demo", str(path), quantize=True)
    return path


@pytest.fixture
def converted(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def record(directory: Path, **changes: object) -> None:
    path = directory / "conversion.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def contents(file: LocalFile) -> bytes:
    return file.content if isinstance(file.content, bytes) else file.content.read_bytes()


def test_names_sizes_and_hashes_are_those_of_the_contents(converted: Path) -> None:
    for file in publication(converted, REPO).files:
        data = contents(file)
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_hash_of_a_small_file_is_gits(tmp_path: Path) -> None:
    # As `printf 'hello\n' | git hash-object --stdin` says.
    assert LocalFile("x", b"hello\n", 6, "").git_oid() == "ce013625030ba8dba906f756967f9e9ca394464a"
    (tmp_path / "x").write_bytes(b"")
    assert LocalFile("x", tmp_path / "x", 0, "").git_oid() == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_the_card_names_the_repository_and_the_record_the_card(converted: Path) -> None:
    before = {path.name: path.read_bytes() for path in converted.iterdir()}
    files = {file.name: file for file in publication(converted, REPO).files}
    card = contents(files["README.md"]).decode()
    assert "# tiny\n" in card
    assert f"--model {REPO} " in card
    assert "--model tiny" not in card
    published = json.loads(contents(files["conversion.json"]))
    assert published["files"]["README.md"] == files["README.md"].sha256
    assert {path.name: path.read_bytes() for path in converted.iterdir()} == before


def test_no_path_of_this_machine_is_published(tmp_path: Path, original: Path) -> None:
    source = Path(shutil.copytree(helium_mlx.files.hub.DEMO_DIRECTORY, tmp_path / "alice" / "secret plans"))  # pyright: ignore[reportAttributeAccessIssue]
    helium_mlx.convert(str(source), str(tmp_path / "x"), quantize=True)
    for file in publication(tmp_path / "x", REPO).files:
        assert b"alice" not in contents(file)
    assert b"secret plans" in (tmp_path / "x/README.md").read_bytes()


def test_what_is_no_part_of_a_checkpoint_stays_here(converted: Path) -> None:
    for name in (".DS_Store", "notes.txt", "secrets.json", "evil.py", "model.bin"):
        (converted / name).write_text("x")
    (converted / "checkpoints").mkdir()
    published = publication(converted, REPO)
    assert set(published.left_out) == {".DS_Store", "checkpoints", "evil.py", "model.bin", "notes.txt", "secrets.json"}
    assert not {file.name for file in published.files} & set(published.left_out)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "README.md"])
def test_a_file_that_changed_is_named(converted: Path, name: str) -> None:
    data = bytearray((converted / name).read_bytes())
    data[-1] ^= 1
    (converted / name).write_bytes(data)
    with pytest.raises(UploadError, match=f"{name} has been changed since"):
        publication(converted, REPO)


def test_a_file_that_is_missing_is_named(converted: Path) -> None:
    (converted / "tokenizer.json").unlink()
    with pytest.raises(UploadError, match=r"tokenizer.json is missing"):
        publication(converted, REPO)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "LICENSE", "added_tokens.json"])
def test_a_file_that_came_later_is_named(converted: Path, name: str) -> None:
    (converted / name).write_text("x")
    with pytest.raises(UploadError, match=f"{name} came later"):
        publication(converted, REPO)


def test_a_link_out_of_the_directory_is_not_followed(converted: Path, tmp_path: Path) -> None:
    shutil.move(converted / "config.json", tmp_path / "elsewhere")
    (converted / "config.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UploadError, match="outside of the checkpoint"):
        publication(converted, REPO)


def test_a_pipe_is_not_waited_for(converted: Path) -> None:
    import os

    (converted / "config.json").unlink()
    os.mkfifo(converted / "config.json")
    with pytest.raises(UploadError, match="not a regular file"):
        publication(converted, REPO)


def test_what_was_not_verified_is_not_published(tmp_path: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"), verify=False)
    with pytest.raises(UploadError, match=r"converted without verification.*convert it again with it"):
        publication(tmp_path / "x", REPO)


@pytest.mark.parametrize("figures", [{}, False, "failed", []])
def test_a_record_without_figures_counts_as_not_verified(converted: Path, figures: object) -> None:
    record(converted, verification=figures)
    with pytest.raises(UploadError, match="not published"):
        publication(converted, REPO)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a/model.safetensors", ".ssh", "x.py", "conversion.json"]
)
def test_a_record_cannot_name_other_files(converted: Path, name: str) -> None:
    files = json.loads((converted / "conversion.json").read_text())["files"]
    record(converted, files=files | {name: "0" * 64})
    with pytest.raises(UploadError, match="is not a file of a checkpoint"):
        publication(converted, REPO)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, r"has no conversion\.json, so that `helium-mlx convert` did not make it; convert it, and"),
        ("{", "is not JSON"),
        ("{}", "is not of this converter"),
        ('{"versions": {"helium_mlx": "1"}, "files": []}', "is not of this converter"),
        ('{"versions": {"helium_mlx": "1"}, "files": {}}', "names no card or no weights"),
    ],
)
def test_a_directory_needs_the_record_of_its_conversion(converted: Path, text: str | None, expected: str) -> None:
    if text is None:
        (converted / "conversion.json").unlink()
    else:
        (converted / "conversion.json").write_text(text)
    with pytest.raises(UploadError, match=expected) as caught:
        publication(converted, REPO)
    assert "copy it there" not in str(caught.value)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UploadError, match="no such directory"):
        publication(tmp_path / "nowhere", REPO)


def test_a_card_without_a_licence_is_a_warning(tmp_path: Path) -> None:
    source = Path(shutil.copytree(helium_mlx.files.hub.DEMO_DIRECTORY, tmp_path / "source"))  # pyright: ignore[reportAttributeAccessIssue]
    for card, expected in (("# x\n", 1), ("---\nlicense: mit\n---\n", 0), ("---\nlicense:\n- mit\n- gemma\n---\n", 0)):
        (source / "README.md").write_text(card)
        helium_mlx.convert(str(source), str(tmp_path / "x"), overwrite=True)
        assert len(publication(tmp_path / "x", REPO).warnings) == expected


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "training_args.bin", "modeling.py", ".env", "token", "optimizer.json", "README.md.bak"],
)
def test_other_names_are_on_no_list(name: str) -> None:
    assert not is_publishable(name)


def test_a_template_in_its_folder_is_published_under_its_path(converted: Path) -> None:
    name = "additional_chat_templates/rag.jinja"
    (converted / name).parent.mkdir()
    (converted / name).write_text("x")
    with pytest.raises(UploadError, match=f"{name} came later"):
        publication(converted, REPO)
    files = json.loads((converted / "conversion.json").read_text())["files"]
    record(converted, files=files | {name: hashlib.sha256(b"x").hexdigest()})
    assert name in [file.name for file in publication(converted, REPO).files]
    (converted / "additional_chat_templates/x.py").write_text("x")
    assert publication(converted, REPO).left_out == ("additional_chat_templates/x.py",)
