"""What becomes of each tensor in a conversion: cast, quantized or dequantized, a few megabytes of rows at a time.

One thread reads ahead, MLX computes (on two cores of a CPU, see `helium_mlx/backend.py`), and the caller writes.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import cycle

import mlx.core as mx

from helium_mlx import backend
from helium_mlx.checkpoint.checkpoint import Checkpoint
from helium_mlx.checkpoint.quantization_settings import PARTS, ModuleSettings, QuantizationSettings
from helium_mlx.checkpoint.row_blocks import RowBlock, all_finite, dequantized, places_of, read_ahead, row_blocks_of
from helium_mlx.errors import CheckpointError


def converted_rows(
    checkpoint: Checkpoint,
    settings_of: ModuleSettings,
    dtype: mx.Dtype,
    *,
    is_wanted: Callable[[str], bool] = lambda name: True,
) -> Iterator[tuple[str, int, mx.array]]:
    """Yield the result as (name in a causal LM, first row, rows), evaluated, in the order of the source's files.

    `settings_of` says how each module is packed in the result; `dtype` is that of everything else; tensors that
    `is_wanted` says no to, by their names in a causal LM, are left out.

    Raises CheckpointError for values that are not finite, or that `dtype` cannot hold, and for a file that changes
    while it is read.
    """
    places = places_of(checkpoint)
    blocks = (block for name in places if is_wanted(name) for block in row_blocks_of(checkpoint, places, name))
    streams = backend.conversion_streams()
    started: deque[tuple[RowBlock, dict[str, mx.array], mx.array]] = deque()
    for (block, data), stream in zip(read_ahead(blocks), cycle(streams)):
        path, _, suffix = block.name.rpartition(".")
        with mx.stream(stream):
            rows, is_sound = converted_parts(block, data, settings_of(path) if suffix == "weight" else None, dtype)
        mx.async_eval(rows, is_sound)
        started.append((block, rows, is_sound))
        if len(started) > 2 * len(streams):
            yield from _finish(*started.popleft(), dtype)
    while started:
        yield from _finish(*started.popleft(), dtype)
    for reader in {reader for reader, _ in places.values()}:
        reader.require_unchanged()


def converted_parts(
    block: RowBlock, data: dict[str, bytes], settings: QuantizationSettings | None, dtype: mx.Dtype
) -> tuple[dict[str, mx.array], mx.array]:
    """Return the parts that the rows become, keyed by suffix, and whether all is finite; nothing is evaluated."""
    arrays = block.arrays(data)
    suffix = next(iter(arrays))
    weight = arrays[suffix] if block.settings is None else dequantized(arrays, block.settings)
    rows = {suffix: weight.astype(dtype)} if settings is None else quantized(weight, settings, dtype)
    is_sound = mx.array(True)
    for array in (*arrays.values(), *(rows.values() if settings is not None or weight.dtype != dtype else ())):
        is_sound = is_sound & all_finite(array)
    return rows, is_sound


def quantized(weight: mx.array, settings: QuantizationSettings, dtype: mx.Dtype) -> dict[str, mx.array]:
    """Return the parts that `mx.quantize` makes of a weight (rows, columns), keyed by suffix; nothing is evaluated."""
    # In float32, which holds all that the source does: the codes are the same, and come a third faster on the CPU.
    parts = mx.quantize(weight.astype(mx.float32), settings.group_size, settings.bits, settings.mode)
    return {
        name: part.astype(dtype) if mx.issubdtype(part.dtype, mx.floating) else part
        for name, part in zip(PARTS, parts)  # noqa: B905
    }


def _finish(
    block: RowBlock, rows: dict[str, mx.array], is_sound: mx.array, dtype: mx.Dtype
) -> Iterator[tuple[str, int, mx.array]]:
    if not is_sound.item():
        raise CheckpointError(
            f"{block.name} has values that are not finite, in the source or in {backend.dtype_name(dtype)}; "
            "take an intact source, or give another with dtype=..."
        )
    path = block.name.rpartition(".")[0]
    for suffix, array in rows.items():
        yield f"{path}.{suffix}", block.first_row, array
