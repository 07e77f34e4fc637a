import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helium_mlx.errors import one_line, shown, some
from helium_mlx.files import untrusted as json_files
from helium_mlx.files.untrusted import (
    MAX_DEPTH,
    MAX_DIGITS,
    MalformedFile,
    UnreadableFile,
    open_file,
    parse_json_object,
    read_bytes,
    read_json_object,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON))
def test_reads_what_python_reads(values: dict[str, object]) -> None:
    assert parse_json_object(json.dumps(values).encode()) == values
    try:
        text = json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert parse_json_object(text) == values


MALFORMED = {
    "nothing": (b"", "not JSON"),
    "a list": (b"[1]", "holds a list"),
    "null": (b"null", "holds a NoneType"),
    "NaN": (b'{"a": NaN}', "NaN is not a number"),
    "an infinity": (b'{"a": -Infinity}', "-Infinity is not a number"),
    "a float beyond floats": (b'{"a": 1e999}', "too large"),
    "a million digits": (b'{"a": ' + b"1" * 10**6 + b"}", "1000000 digits"),
    "a name twice": (b'{"a": 1, "a": 1}', "'a' stands twice"),
    "a name twice, deep": (b'{"b": [{"a": 1, "a": 2}]}', "'a' stands twice"),
    "Latin-1": (b'{"a": "\xe9"}', "byte 7 is not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "BOM"),
    "more after the end": (b"{} {}", "Extra data"),
    "a deep list": (b'{"a": ' + b"[" * 10**6, "nested more than"),
    "deep objects": (b'{"a":' * 10**5 + b"1" + b"}" * 10**5, "nested more than"),
    "depth after an escaped quote": (b'{"a\\"": ' + b"[" * 10**5, "nested more than"),
    "depth after an escaped backslash": (b'{"a\\\\": ' + b"[" * 10**5, "nested more than"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_json_is_refused_in_one_line(name: str) -> None:
    text, said = MALFORMED[name]
    with pytest.raises(MalformedFile, match=said) as caught:
        parse_json_object(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_depth_is_known_before_the_parser_recurses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files.json, "loads", lambda *_args, **_kwargs: pytest.fail("parsed"))
    with pytest.raises(MalformedFile, match="nested more than"):
        parse_json_object(b'{"a": ' + b"[" * MAX_DEPTH)


def test_depth_up_to_the_cap_is_read() -> None:
    nested = b'{"a": ' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert parse_json_object(nested)


@pytest.mark.parametrize("text", ["[" * 1000, '\\"[' * 1000, "\\\\", '\\\\\\"' + "{" * 100, '"'])
def test_brackets_in_text_are_no_depth(text: str) -> None:
    assert parse_json_object(json.dumps({"a": text, text: 1}).encode()) == {"a": text, text: 1}


def test_numbers_up_to_the_cap_are_read() -> None:
    assert parse_json_object(b'{"a": ' + b"9" * MAX_DIGITS + b"}") == {"a": 10**MAX_DIGITS - 1}


@pytest.mark.parametrize("text", [b'"' + b'\\"' * 2_000_000, b'"' * 4_000_000, b"[]" * 2_000_000, b'"\\' * 2_000_000])
def test_finding_the_depth_takes_little_memory(text: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(MalformedFile):
        parse_json_object(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 250_000_000


def test_a_file_larger_than_the_cap_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(UnreadableFile, match="has 5 bytes; at most 4"):
        read_bytes(tmp_path / "a", 4)


def test_a_missing_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="No such file"):
        read_json_object(tmp_path / "a")


@pytest.mark.parametrize("kind", ["pipe", "directory", "device"])
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    with pytest.raises(UnreadableFile, match="Is a directory" if kind == "directory" else "not a regular file"):
        open_file(path)


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "b/../../secret", "loop", "chain"])
def test_a_link_that_leaves_is_not_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "secret").write_text("{}")
    directory = tmp_path / "checkpoint"
    (directory / "b").mkdir(parents=True)
    (directory / "chain").symlink_to("../secret")
    (directory / ("a" if target != "loop" else "loop")).symlink_to(target)
    with pytest.raises(UnreadableFile, match=r"outside of the checkpoint|symbolic links"):
        open_file(directory / ("a" if target != "loop" else "loop"))


@pytest.mark.parametrize(("repository", "is_read"), [("models--x--y", True), ("models--x--z", False), ("", False)])
def test_a_snapshot_links_to_its_own_repository_only(tmp_path: Path, repository: str, is_read: bool) -> None:
    snapshot, blob = tmp_path / "models--x--y/snapshots/0123", tmp_path / repository / "blobs/abc"
    snapshot.mkdir(parents=True)
    blob.parent.mkdir(parents=True)
    blob.write_text("{}")
    (snapshot / "config.json").symlink_to(blob)
    if is_read:
        assert read_json_object(snapshot / "config.json") == {}
    else:
        with pytest.raises(UnreadableFile, match="outside of the checkpoint"):
            read_json_object(snapshot / "config.json")


@pytest.mark.parametrize(
    ("target", "is_read"),
    [
        ("hub/models--x--y/snapshots/0123/config.json", True),
        ("hub/models--x--y/blobs/abc", True),
        ("hub/models--x--y/blobs", False),
        ("hub/models--x--y/refs/../../../token", False),
        ("hub/models--x--y/snapshots/0123/out", False),
        ("hub/datasets--x--y/blobs/abc", False),
        ("hub/version.txt", False),
        ("token", False),
        ("other/models--x--y/blobs/abc", False),
    ],
)
def test_files_linked_one_by_one_into_this_machines_cache_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, is_read: bool
) -> None:
    blobs = ("hub/models--x--y/blobs/abc", "hub/datasets--x--y/blobs/abc", "other/models--x--y/blobs/abc")
    for name in (*blobs, "hub/version.txt", "token", "hub/models--x--y/refs/main"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    snapshot = tmp_path / "hub/models--x--y/snapshots/0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (snapshot / "out").symlink_to("../../../../token")
    (tmp_path / "cache").symlink_to("hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").symlink_to(tmp_path / target)
    if is_read:
        assert read_json_object(tmp_path / "mine/config.json") == {}
    else:
        with pytest.raises(UnreadableFile, match="outside of the checkpoint"):
            read_json_object(tmp_path / "mine/config.json")


@given(st.text() | JSON)
def test_what_is_shown_is_short_and_printable(value: object) -> None:
    assert shown(value).isprintable()
    # An escape is longer than the character it stands for.
    assert len(shown(value)) <= 60


def test_a_line_stays_one() -> None:
    assert one_line("a\nb\x1b[31m\u2028\ud800") == r"a\nb\x1b[31m\u2028\ud800"
    assert len(one_line("x" * 1000)) == 500


def test_huge_values_are_described() -> None:
    assert shown([0] * 1000) == "list of 1000"
    assert shown(10**10_000) == "a number of thousands of digits"


def test_of_many_names_the_first_are_told() -> None:
    assert some(["a"]) == "a"
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(["a", "b", "c", "d"]) == "a, b, c and 1 more"
    assert some(["a", "b", "c"], 1) == "a and 2 more"
