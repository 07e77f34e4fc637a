"""Writes safetensors files tensor by tensor, so that a checkpoint need never be in memory as a whole.

`mx.save_safetensors` wants all arrays at once; here names, dtypes and shapes are said first, the header is written
from them, and each tensor is put at its place when it is ready. Large tensors come first within a dtype's alignment,
as in Hugging Face's writer, so that every tensor starts at a multiple of its value's size.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import cast

import mlx.core as mx

from helium_mlx.safetensors_header import TensorInfo

DTYPE_NAMES = {mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32", mx.uint32: "U32", mx.uint8: "U8"}

TensorPlan = tuple[mx.Dtype, tuple[int, ...]]


def plan_bytes(plan: TensorPlan) -> int:
    """Return how many bytes a tensor takes."""
    dtype, shape = plan
    return math.prod(shape) * dtype.size


class SafetensorsWriter:
    """One file, open for writing; every planned tensor must be written once before it is closed."""

    def __init__(self, path: Path, plans: Mapping[str, TensorPlan]) -> None:
        self.path = path
        header, self._places = _header(plans)
        self._file = path.open("wb")
        self._file.write(header)

    def write(self, name: str, tensor: mx.array) -> None:
        """Put a tensor at its place; its dtype and shape are the planned ones."""
        place = self._places.pop(name)
        assert (DTYPE_NAMES[tensor.dtype], tensor.shape) == (place.dtype, place.shape), name
        self._file.seek(place.start)
        # As bytes: bfloat16 has no buffer format of its own.
        octets: object = mx.contiguous(tensor.reshape(-1)).view(mx.uint8)
        self._file.write(cast(bytes, octets))

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        assert error is not None or not self._places, f"not written: {sorted(self._places)[:3]}"


def _header(plans: Mapping[str, TensorPlan]) -> tuple[bytes, dict[str, TensorInfo]]:
    """Return the header's bytes and each tensor's place in the file."""
    order = sorted(plans, key=lambda name: -plans[name][0].size)
    entries: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    infos: dict[str, TensorInfo] = {}
    position = 0
    for name in order:
        dtype, shape = plans[name]
        end = position + plan_bytes(plans[name])
        infos[name] = TensorInfo(DTYPE_NAMES[dtype], shape, position, end)
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    places = {
        name: TensorInfo(info.dtype, info.shape, start + info.start, start + info.end) for name, info in infos.items()
    }
    return len(text).to_bytes(8, "little") + text, places


def shards(plans: Iterable[tuple[str, TensorPlan]], limit: int) -> list[dict[str, TensorPlan]]:
    """Deal tensors into files of at most `limit` bytes of data, in the order given; a larger tensor gets its own."""
    files: list[dict[str, TensorPlan]] = [{}]
    size = 0
    for name, plan in plans:
        size += plan_bytes(plan)
        if size > limit and files[-1]:
            files.append({})
            size = plan_bytes(plan)
        files[-1][name] = plan
    return files
