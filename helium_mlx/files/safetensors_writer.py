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

from helium_mlx.files.safetensors_header import TensorInfo

DTYPE_NAMES = {mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32", mx.uint32: "U32", mx.uint8: "U8"}
TensorPlan = tuple[mx.Dtype, tuple[int, ...]]


def plan_bytes(plan: TensorPlan) -> int:
    """Return how many bytes a tensor takes."""
    dtype, shape = plan
    return math.prod(shape) * dtype.size


class SafetensorsWriter:
    """One file in the making; every planned tensor must be written once before the context ends."""

    def __init__(
        self,
        path: Path,
        plans: Mapping[str, TensorPlan],
        *,
        metadata_format: str = "mlx",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        header, self._places = _header(plans, {"format": metadata_format, **(metadata or {})})
        self._missing_bytes = {name: plan_bytes(plan) for name, plan in plans.items()}
        # Opened for each tensor, so that any number of shards can be written in turn.
        path.write_bytes(header)

    def write(self, name: str, tensor: mx.array, *, first_row: int = 0) -> None:
        """Put a tensor, or the rows of it from `first_row` on, at its place; dtype and row shape are the planned ones.

        Every row has to be written once; which comes first does not matter.
        """
        place = self._places[name]
        assert (DTYPE_NAMES[tensor.dtype], tensor.shape[1:]) == (place.dtype, place.shape[1:]), name
        row_bytes = (place.end - place.start) // place.shape[0] if first_row else 0
        self._missing_bytes[name] -= tensor.nbytes
        assert self._missing_bytes[name] >= 0, name
        # As bytes: bfloat16 has no buffer format of its own.
        data: object = mx.contiguous(tensor.reshape(-1)).view(mx.uint8)
        with self.path.open("r+b") as file:
            file.seek(place.start + first_row * row_bytes)
            file.write(cast(bytes, data))

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        missing = [name for name, count in self._missing_bytes.items() if count]
        assert error is not None or not missing, f"not written: {missing[:3]}"


def _header(plans: Mapping[str, TensorPlan], metadata: dict[str, str]) -> tuple[bytes, dict[str, TensorInfo]]:
    """Return the header's bytes and each tensor's place in the file."""
    order = sorted(plans, key=lambda name: -plans[name][0].size)
    entries: dict[str, object] = {"__metadata__": metadata}
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
