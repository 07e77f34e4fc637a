import json
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helium_mlx.errors import CheckpointError
from helium_mlx.files.safetensors_header import MAX_HEADER_BYTES, MAX_NAME, MAX_TENSORS, read_header


def file_with(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_reads_what_mlx_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    mx.save_safetensors(str(path), {"a": mx.zeros((2, 3)), "b": mx.zeros((4,), mx.bfloat16), "c": mx.array(1.0)})
    infos = read_header(path)
    assert {name: (info.dtype, info.shape) for name, info in infos.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (4,)),
        "c": ("F32", ()),
    }
    assert max(info.end for info in infos.values()) == path.stat().st_size


BROKEN = {
    "empty": (b"", b"", None),
    "header longer than the file": ({}, b"", 1000),
    "header larger than the format's limit": ({}, b"", MAX_HEADER_BYTES + 1),
    "header length of 2^64 - 1": ({}, b"", 2**64 - 1),
    "not JSON": (b"{oops", b"", None),
    "not UTF-8": (b'{"\xff": 1}', b"", None),
    "a list": ([], b"", None),
    "a deep nest": (b"[" * 100_000, b"", None),
    "a deep nest in an entry": (b'{"a":' * 100_000, b"", None),
    "a header larger than is read": (b" " * MAX_HEADER_BYTES + b"{}", b"", None),
    "a size of a million digits": (b'{"a":{"dtype":"U8","shape":[' + b"1" * 10**6 + b"]}}", b"", None),
    "a size of 1.0": ({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, b"\0" * 4, None),
    "nine axes": ({"a": entry(0, 4, [1] * 9)}, b"\0" * 4, None),
    "a name without letters": ({"": entry(0, 4, [1])}, b"\0" * 4, None),
    "a name with a line break": ({"a\nb": entry(0, 4, [1])}, b"\0" * 4, None),
    "a name with a terminal escape": ({"\x1b[2J": entry(0, 4, [1])}, b"\0" * 4, None),
    "a name with a zero": ({"a\0b": entry(0, 4, [1])}, b"\0" * 4, None),
    "a long name": ({"a" * (MAX_NAME + 1): entry(0, 4, [1])}, b"\0" * 4, None),
    "more tensors than are read": ({f"{i}": entry(0, 0, [0]) for i in range(MAX_TENSORS + 1)}, b"", None),
    "metadata that is a list": ({"__metadata__": [], "a": entry(0, 4, [1])}, b"\0" * 4, None),
    "metadata that is nested": ({"__metadata__": {"a": {"b": "c"}}, "a": entry(0, 4, [1])}, b"\0" * 4, None),
    "a name twice": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"\0",
        None,
    ),
    "an unknown dtype": ({"a": entry(0, 4, [1], "F128")}, b"\0" * 4, None),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4, None),
    "an entry that is no object": ({"a": 4}, b"", None),
    "a negative size": ({"a": entry(0, 4, [-1])}, b"\0" * 4, None),
    "a size that is no number": ({"a": entry(0, 4, ["1"])}, b"\0" * 4, None),  # pyright: ignore[reportArgumentType]
    "a size that is true": ({"a": entry(0, 4, [True])}, b"\0" * 4, None),
    "sizes whose product is huge": ({"a": entry(0, 4, [2**61, 2**61])}, b"\0" * 4, None),
    "bytes that do not fit the shape": ({"a": entry(0, 8, [1])}, b"\0" * 8, None),
    "offsets backwards": ({"a": entry(4, 0, [1])}, b"\0" * 4, None),
    "three offsets": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, b"\0" * 4, None),
    "an overlap": ({"a": entry(0, 4, [1]), "b": entry(2, 6, [1])}, b"\0" * 6, None),
    "a hole": ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, b"\0" * 12, None),
    "a file cut short": ({"a": entry(0, 8, [2])}, b"\0" * 7, None),
    "bytes after the last tensor": ({"a": entry(0, 4, [1])}, b"\0" * 5, None),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_header_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    header, data, length = BROKEN[name]
    path = file_with(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ") as caught:
        read_header(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_metadata_may_be_text_or_null(tmp_path: Path) -> None:
    for metadata in ({"format": "pt"}, {}, None):
        path = file_with(tmp_path / "a", {"__metadata__": metadata, "a": entry(0, 4, [1])}, b"\0" * 4)
        assert list(read_header(path)) == ["a"]


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_header(tmp_path / "model.safetensors")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        read_header(path)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64"])
def test_a_dtype_of_the_format_that_is_not_read_is_refused_with_a_remedy(tmp_path: Path, dtype: str) -> None:
    path = file_with(tmp_path / "a", {"a": entry(0, 4, [4], dtype)}, b"\0" * 4)
    with pytest.raises(CheckpointError, match=f"'a' has dtype {dtype}, which is not read here; take .* in bfloat16"):
        read_header(path)
