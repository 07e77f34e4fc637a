"""Weight files on disk: one, or numbered shards with an index, in a directory that is there whole or not at all."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import mlx.core as mx

from helium_mlx.checkpoint import INDEX_FILE, WEIGHTS_FILE
from helium_mlx.errors import CheckpointError
from helium_mlx.safetensors_writer import SafetensorsWriter, TensorPlan, plan_bytes, shards

# What mlx-lm and Hugging Face cut at.
MAX_SHARD_BYTES = 5_000_000_000


def write_weights(
    directory: Path,
    plans: Mapping[str, TensorPlan],
    tensors: Iterator[tuple[str, mx.array]],
    *,
    max_shard_bytes: int | None = None,
) -> Iterator[int]:
    """Write `tensors`, which come in any order, as planned; yield the bytes written after each."""
    files = shards(plans.items(), MAX_SHARD_BYTES if max_shard_bytes is None else max_shard_bytes)
    names = [WEIGHTS_FILE]
    if len(files) > 1:
        names = [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    done = 0
    with ExitStack() as stack:
        writers: dict[str, SafetensorsWriter] = {}
        for name, plan in zip(names, files, strict=True):
            writers |= dict.fromkeys(plan, stack.enter_context(SafetensorsWriter(directory / name, plan)))
        for name, tensor in tensors:
            writers[name].write(name, tensor)
            done += tensor.nbytes
            yield done
    if len(files) > 1:
        weight_map = {tensor: name for name, plan in zip(names, files, strict=True) for tensor in plan}
        total = sum(map(plan_bytes, plans.values()))
        write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write a JSON file as people like to read it."""
    # "replace": a path that is no UTF-8 may be among the values.
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")


@contextmanager
def new_directory(destination: Path, *, replace: bool) -> Iterator[Path]:
    """Give a directory to write into; it becomes `destination` if all goes well, and is removed if not.

    With `replace`, a directory that is there already is put aside first, and removed last.
    """
    with _working_directory(destination) as directory:
        yield directory
        with _named_errors(destination):
            if not (replace and destination.exists()):
                directory.rename(destination)
                return
            replaced = directory.with_suffix(".replaced")
            destination.rename(replaced)
            try:
                directory.rename(destination)
            except BaseException:
                replaced.rename(destination)
                raise
            shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def files_into(destination: Path) -> Iterator[Path]:
    """Give a directory to write into; its files move to `destination`, over what has their names, if all goes well.

    Weight files that were there and are not written anew are removed: they would be read as part of the checkpoint.
    """
    with _working_directory(destination) as directory:
        yield directory
        with _named_errors(destination):
            destination.mkdir(parents=True, exist_ok=True)
            written = {path.name for path in directory.iterdir()}
            for name in sorted(written):
                os.replace(directory / name, destination / name)
            for path in [*destination.glob("model*.safetensors"), destination / INDEX_FILE]:
                if path.name not in written:
                    path.unlink(missing_ok=True)


@contextmanager
def _working_directory(destination: Path) -> Iterator[Path]:
    with _named_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        # Not mkdtemp: its directories are for their owner alone, and a checkpoint follows the user's umask.
        directory = destination.parent / f".{destination.name}.{secrets.token_hex(4)}.partial"
        directory.mkdir()
    try:
        with _named_errors(destination):
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _named_errors(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{destination}: cannot be written ({error.strerror})") from None
