"""Weight files on disk: one, or numbered shards with an index, in a directory that is there whole or not at all."""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import mlx.core as mx

from helium_mlx.checkpoint.checkpoint import MAX_SHARDS
from helium_mlx.errors import ArgumentError, CheckpointError, shown
from helium_mlx.files.atomic import write_json
from helium_mlx.files.names import INDEX_FILE, WEIGHTS_FILE
from helium_mlx.files.safetensors_writer import SafetensorsWriter, TensorPlan, plan_bytes, shards
from helium_mlx.option_values import whole

# What mlx-lm and Hugging Face cut at.
MAX_SHARD_BYTES = 5_000_000_000


def write_weights(
    directory: Path,
    plans: Mapping[str, TensorPlan],
    tensors: Iterator[tuple[str, mx.array]],
    *,
    max_shard_bytes: int | None = None,
) -> None:
    """Write `tensors`, which come in any order, as planned: dtype and shape by name, in the order of the shards."""
    with open_weights(directory, plans, max_shard_bytes=max_shard_bytes) as writers:
        for name, tensor in tensors:
            writers[name].write(name, tensor)


@contextmanager
def open_weights(
    directory: Path,
    plans: Mapping[str, TensorPlan],
    *,
    max_shard_bytes: int | None = None,
    metadata_format: str = "mlx",
) -> Iterator[dict[str, SafetensorsWriter]]:
    """Give the writer of each planned tensor's file; all must be written when the context ends.

    `metadata_format` is what the files say that they are for: "mlx", or "pt" for torch.
    """
    files = shards(plans.items(), MAX_SHARD_BYTES if max_shard_bytes is None else max_shard_bytes)
    names = [WEIGHTS_FILE]
    if len(files) > MAX_SHARDS:
        raise CheckpointError(
            f"the shard size makes {len(files)} files, of which at most {MAX_SHARDS} are read; take a larger one"
        )
    if len(files) > 1:
        names = [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    with ExitStack() as stack:
        writers: dict[str, SafetensorsWriter] = {}
        for name, plan in zip(names, files, strict=True):
            writer = stack.enter_context(SafetensorsWriter(directory / name, plan, metadata_format=metadata_format))
            writers |= dict.fromkeys(plan, writer)
        yield writers
    if len(files) > 1:
        weight_map = {tensor: name for name, plan in zip(names, files, strict=True) for tensor in plan}
        total = sum(map(plan_bytes, plans.values()))
        write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def parse_size(size: int | str, name: str = "max_shard_size") -> int:
    """Return bytes: a number, or text such as "5GB" or "200MiB", as transformers' `max_shard_size`."""
    found = (
        re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) *(?:([KMGT]?)(i?)B)?", size.strip(), re.IGNORECASE)
        if isinstance(size, str)
        else None
    )
    if found:
        number, prefix, binary = found.groups("")
        size = int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))
    if (count := whole(size)) is None or count < 1:
        raise ArgumentError(f"{name} is {shown(size)}; expected a number of bytes, or text such as '5GB'")
    return count
