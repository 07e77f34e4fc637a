"""The header of a safetensors file, checked before any tensor is read.

MLX trusts a header's offsets more than a stranger's file deserves. The format (huggingface/safetensors): 8 bytes of
little-endian header length, a JSON object of `{name: {dtype, shape, data_offsets}}` and `__metadata__`, then the
tensors' bytes, without holes or overlaps. Narrower than the format: a header of at most 4 MB, where the format allows
100, at most 20,000 tensors, and names that are short and printable, so that they can stand in messages as they are.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from helium_mlx.errors import CheckpointError, shown
from helium_mlx.files.untrusted import MAX_JSON_BYTES, MalformedFile, UnreadableFile, open_file, parse_json_object

MAX_HEADER_BYTES = MAX_JSON_BYTES

# A quantized Helium of 2 billion parameters has 600, with names of up to 50 characters.
MAX_TENSORS = 20_000
MAX_NAME = 200
MAX_AXES = 8
BYTES_PER_VALUE = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
# Those of the format (safetensors 0.8) of other programs' quantization, whose values may be parts of a byte.
_UNREAD_DTYPES = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64")
FLOAT_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor's dtype (safetensors' name), shape, and byte range from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a safetensors file, in the order of their bytes.

    Raises CheckpointError, one line with the file and what is wrong, for anything that the format does not allow.
    """
    return read_header_and_metadata(path)[0]


def read_header_and_metadata(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Return what `read_header` does, and the file's `__metadata__`."""
    try:
        with open_file(path) as file:
            file_size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 2 <= length <= file_size - 8:
                raise CheckpointError(f"{path}: not a safetensors file, or cut short; download it again")
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{path}: the safetensors header has {length} bytes, more than the {MAX_HEADER_BYTES} that are "
                    "read; download it again"
                )
            entries = parse_json_object(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); download it again") from None
    except UnreadableFile as problem:
        raise CheckpointError(f"{path}: {problem}") from None
    except MalformedFile as problem:
        raise CheckpointError(f"{path}: the safetensors header {problem}") from None
    metadata = _metadata(path, entries.pop("__metadata__", {}))
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(
            f"{path}: has {len(entries)} tensors, more than the {MAX_TENSORS} that are read; download it again"
        )
    data_start = 8 + length
    infos = {name: _tensor_info(path, name, entry, data_start) for name, entry in entries.items()}
    infos = dict(sorted(infos.items(), key=lambda item: (item[1].start, item[1].end)))
    _require_contiguous(path, infos, data_start, file_size)
    return infos, metadata


def _metadata(path: Path, metadata: object) -> dict[str, str]:
    # MLX writes null where it was given none.
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(
            f"{path}: __metadata__ is {shown(metadata)}; it must map names to text; download it again"
        )
    return cast("dict[str, str]", metadata)


def _tensor_info(path: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    def is_size(value: object) -> bool:
        return type(value) is int and 0 <= value < 2**62

    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise CheckpointError(
            f"{path}: a tensor is called {shown(name)}; names have 1 to {MAX_NAME} printable characters; "
            "download it again"
        )
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    problem = ""
    if dtype in _UNREAD_DTYPES:
        raise CheckpointError(
            f"{path}: tensor {shown(name)} has dtype {dtype}, which is not read here; take the checkpoint in bfloat16, "
            "float16 or float32"
        )
    if not isinstance(dtype, str) or dtype not in BYTES_PER_VALUE:
        problem = f"dtype {shown(dtype)}, which the format does not have"
    elif not isinstance(shape, list) or len(shape) > MAX_AXES or not all(map(is_size, shape)):
        problem = f"shape {shown(shape)}; it must be a list of at most {MAX_AXES} sizes"
    elif not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_size, offsets)):
        problem = f"data_offsets {shown(offsets)}; it must be [start, end]"
    else:
        size, expected = offsets[1] - offsets[0], math.prod(shape) * BYTES_PER_VALUE[dtype]
        if size == expected:
            return TensorInfo(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])
        problem = f"{size} bytes; {dtype} of shape {shown(shape)} takes {expected}"
    raise CheckpointError(f"{path}: tensor {shown(name)} has {problem}; download it again")


def _require_contiguous(path: Path, infos: dict[str, TensorInfo], data_start: int, file_size: int) -> None:
    position = data_start
    for name, info in infos.items():
        if info.start != position:
            problem = "overlaps the one before" if info.start < position else "leaves a hole before it"
            raise CheckpointError(f"{path}: tensor {shown(name)} {problem}; the file is damaged, download it again")
        position = info.end
    if position != file_size:
        problem = "is cut short" if position > file_size else "has bytes after its last tensor"
        raise CheckpointError(f"{path}: the file {problem} ({file_size} bytes, {position} expected); download it again")
