"""The header of a safetensors file, checked before any tensor is read.

MLX trusts a header's offsets more than a stranger's file deserves. The format (huggingface/safetensors): 8 bytes of
little-endian header length, a JSON object of `{name: {dtype, shape, data_offsets}}` and `__metadata__`, then the
tensors' bytes, without holes or overlaps.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from helium_mlx.errors import CheckpointError

# safetensors' own limit on the header.
MAX_HEADER_BYTES = 100_000_000

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
    try:
        with path.open("rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, file_size - 8):
                raise CheckpointError(f"{path}: not a safetensors file, or cut short; download it again")
            header = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        entries = json.loads(header, object_pairs_hook=_object_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the safetensors header is not valid JSON ({error})") from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: the safetensors header is not a JSON object")
    entries.pop("__metadata__", None)
    data_start = 8 + length
    infos = {name: _tensor_info(path, name, entry, data_start) for name, entry in entries.items()}
    infos = dict(sorted(infos.items(), key=lambda item: (item[1].start, item[1].end)))
    _require_contiguous(path, infos, data_start, file_size)
    return infos


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name stands in it twice")
    return names


def _tensor_info(path: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    def is_size(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62

    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BYTES_PER_VALUE:
        raise CheckpointError(f"{path}: tensor {name!r} has dtype {dtype!r}, which the format does not have")
    if not isinstance(shape, list) or len(shape) > 8 or not all(map(is_size, shape)):
        raise CheckpointError(f"{path}: tensor {name!r} has shape {shape!r}; it must be a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_size, offsets)):
        raise CheckpointError(f"{path}: tensor {name!r} has data_offsets {offsets!r}; it must be [start, end]")
    size, expected = offsets[1] - offsets[0], math.prod(shape) * BYTES_PER_VALUE[dtype]
    if size != expected:
        raise CheckpointError(f"{path}: tensor {name!r} has {size} bytes; {dtype} of shape {shape} takes {expected}")
    return TensorInfo(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _require_contiguous(path: Path, infos: dict[str, TensorInfo], data_start: int, file_size: int) -> None:
    position = data_start
    for name, info in infos.items():
        if info.start != position:
            problem = "overlaps the one before" if info.start < position else "leaves a hole before it"
            raise CheckpointError(f"{path}: tensor {name!r} {problem}; the file is damaged, download it again")
        position = info.end
    if position != file_size:
        problem = "is cut short" if position > file_size else "has bytes after its last tensor"
        raise CheckpointError(f"{path}: the file {problem} ({file_size} bytes, {position} expected); download it again")
