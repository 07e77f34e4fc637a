import hashlib
from pathlib import Path

import pytest
from hub_standin import Repository, serve
from hub_standin.client import TOKEN, set_token, use
from huggingface_hub import HfApi

from helium_mlx.errors import UploadError
from helium_mlx.publishing.publication import LocalFile
from helium_mlx.publishing.repository import (
    RemoteFile,
    RemoteState,
    differing,
    previous_record,
    remote_state,
    require_replaceable,
)

DATA = b"some weights"
FILE = LocalFile("model.safetensors", DATA, len(DATA), hashlib.sha256(DATA).hexdigest())


def test_a_large_file_is_known_by_its_sha256_and_a_small_one_by_gits() -> None:
    assert RemoteFile(len(DATA), FILE.sha256, "of the pointer").holds(FILE)
    assert RemoteFile(len(DATA), None, FILE.git_oid()).holds(FILE)
    assert not RemoteFile(len(DATA), "0" * 64, FILE.git_oid()).holds(FILE)
    assert not RemoteFile(len(DATA), None, "0" * 40).holds(FILE)


def test_a_file_of_another_size_is_not_read(tmp_path: Path) -> None:
    missing = LocalFile("x", tmp_path / "missing", 3, "")
    assert differing((missing,), {"x": RemoteFile(4, None, "")}) == [missing]


def test_the_state_is_the_hubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    repository = Repository.of_files({"model.safetensors": DATA, "config.json": b"{}"}, private=True)
    with serve({"a/b": repository}) as hub:
        use(hub, monkeypatch, tmp_path)
        state = remote_state(HfApi(), "a/b", None)
        assert (state.head, state.is_private, state.has_branch) == (repository.branches["main"], True, True)
        assert state.files["model.safetensors"].sha256 == FILE.sha256
        assert state.files["config.json"].sha256 is None
        assert not remote_state(HfApi(), "a/b", "nowhere").has_branch
        assert remote_state(HfApi(), "a/b", "nowhere").files == state.files
        set_token(monkeypatch, None)
        assert remote_state(HfApi(), "a/b", None).head is None
        set_token(monkeypatch, TOKEN)
        assert remote_state(HfApi(), "a/nothing", None).head is None


@pytest.mark.parametrize(
    ("text", "is_ours"),
    [(b'{"versions": {"helium_mlx": "0"}, "files": {}}', True), (b"{", False), (b"{}", False), (b"[]", False)],
)
def test_a_record_is_ours_or_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: bytes, is_ours: bool) -> None:
    with serve({"a/b": Repository.of_files({"conversion.json": text})}) as hub:
        use(hub, monkeypatch, tmp_path)
        record = previous_record(HfApi(), "a/b", remote_state(HfApi(), "a/b", None))
        assert (record is not None) == is_ours


def test_an_empty_repository_is_anybodys() -> None:
    require_replaceable("a/b", RemoteState("0", False, True, {}), is_uploaded=False, overwrite=False)
    for name, said in (("x", "x"), ("x\x1b[2J", r"x\\x1b\[2J")):
        state = RemoteState("0", False, True, {name: RemoteFile(1, None, "")})
        with pytest.raises(UploadError, match=f"holds {said}, which no upload"):
            require_replaceable("a/b", state, is_uploaded=False, overwrite=False)
