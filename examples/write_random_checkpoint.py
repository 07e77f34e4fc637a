"""Writes a checkpoint of a published shape with random weights: `python examples/write_random_checkpoint.py --help`.

For measuring conversion and loading at full size without a download; the text that such a model generates is noise.
The directory is laid out as the published ones are: config in the spelling of transformers v4, one bfloat16
safetensors file or numbered shards. The tokenizer is the demo's, whose ids stay below every vocabulary here.

All tensors are cut from one ring of normal values, each from a place of its own: drawing billions of values would
take minutes, and a converter cannot tell the difference. So tensors differ, but their values repeat.
"""

import argparse
import math
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlx.core as mx

from helium_mlx import CheckpointError, HeliumConfig, HeliumTokenizer
from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.config import DTYPES
from helium_mlx.checkpoint.generation_config import generation_values
from helium_mlx.checkpoint.quantization_settings import unquantized
from helium_mlx.checkpoint.weight_files import write_weights
from helium_mlx.files.atomic import new_directory, write_json
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.files.names import CONFIG_FILE, GENERATION_CONFIG_FILE
from helium_mlx.files.safetensors_writer import TensorPlan
from helium_mlx.progress import Progress
from helium_mlx.terminal import run_command

# What differs from HeliumConfig's defaults, which are the preview's.
SHAPES: dict[str, dict[str, object]] = {
    "preview": {"head_dim": 128},
    "1-2b": {
        "model_type": "llama",
        "num_hidden_layers": 28,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 64000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-8,
        "rope_theta": 20000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}

# A prime, so that where a tensor wraps around falls differently in every row.
RING_SIZE = 4_194_301
GAIN_DEVIATION = 0.1


def write_random_checkpoint(
    output: Path,
    *,
    shape: str = "preview",
    dtype: str = "bfloat16",
    seed: int = 0,
    shard_bytes: int | None = None,
    overrides: Mapping[str, int] | None = None,
) -> HeliumConfig:
    """Write a checkpoint directory and return its config.

    `shape` is a key of `SHAPES`, and `overrides` are fields of `HeliumConfig` that differ from it. The same arguments
    give the same bytes. Weight files are cut at `shard_bytes`, 5 GB by default.

    Raises CheckpointError if `output` is there already, ConfigError for a shape that no model can have.
    """
    if output.exists() or output.is_symlink():
        raise CheckpointError(f"{output} is there already; choose another name, or remove it")
    config = HeliumConfig.from_dict({**SHAPES[shape], "dtype": dtype, **(overrides or {})})
    plans: dict[str, TensorPlan] = {
        name: (getattr(mx, dtype), tensor_shape) for name, tensor_shape in layout.tensor_shapes(config, unquantized)
    }
    with new_directory(output, replace=False) as directory:
        write_json(directory / CONFIG_FILE, _values_as_published(config))
        write_json(directory / GENERATION_CONFIG_FILE, {"_from_model_config": True, **generation_values(config)})
        HeliumTokenizer.from_pretrained(DEMO_DIRECTORY).save_pretrained(directory)
        write_weights(directory, plans, random_tensors(plans, seed=seed), max_shard_bytes=shard_bytes)
    return config


def random_tensors(plans: Mapping[str, TensorPlan], *, seed: int) -> Iterator[tuple[str, mx.array]]:
    """Yield a tensor for each plan: matrices that keep the size of what they multiply, and gains around 1."""
    normals = mx.random.normal((RING_SIZE,), key=mx.random.key(seed))
    starts = random.Random(seed).sample(range(RING_SIZE), len(plans))
    rings: dict[tuple[mx.Dtype, int], mx.array] = {}
    progress = Progress("Writing")
    for done, ((name, (dtype, shape)), start) in enumerate(zip(plans.items(), starts, strict=True), start=1):
        columns = shape[1] if len(shape) == 2 else 0
        if (dtype, columns) not in rings:
            rings[dtype, columns] = _ring(normals, dtype, columns)
            mx.eval(rings[dtype, columns])
        yield name, _cut(rings[dtype, columns], start, shape)
        progress(done, len(plans))


def _ring(normals: mx.array, dtype: mx.Dtype, columns: int) -> mx.array:
    """Return the values that matrices with `columns` columns are cut from, or with 0 those of gains; none is zero."""
    if not columns:
        return (1 + GAIN_DEVIATION * normals).astype(dtype)
    deviation = 1 / math.sqrt(columns)
    values = (deviation * normals).astype(dtype)
    return mx.where(values == 0, mx.array(deviation, dtype), values)


def _cut(ring: mx.array, start: int, shape: tuple[int, ...]) -> mx.array:
    size = math.prod(shape)
    first = ring[start : start + size]
    turns, end = divmod(size - first.size, ring.size)
    return mx.concatenate([first, *[ring] * turns, ring[:end]]).reshape(shape)


def _values_as_published(config: HeliumConfig) -> dict[str, object]:
    """Return `config.json` in the spelling of transformers v4, which the published repositories have."""
    values = config.to_dict()
    del values["rope_parameters"]
    values["torch_dtype"] = values.pop("dtype")
    return dict(sorted(values.items()))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; what names a field of `HeliumConfig` overrides the shape's."""
    parser = argparse.ArgumentParser(description="Write a checkpoint of a published shape with random weights.")
    parser.add_argument("--output", type=Path, required=True, help="directory to write, which must not be there yet")
    parser.add_argument(
        "--shape",
        choices=tuple(SHAPES),
        default="preview",
        help="of kyutai/helium-1-preview-2b (preview) or kyutai/helium-1-2b (1-2b) (default: %(default)s)",
    )
    for option, field, what in (
        ("--layers", "num_hidden_layers", "decoder layers"),
        ("--hidden-size", "hidden_size", "width of the model"),
        ("--intermediate-size", "intermediate_size", "width of the MLP"),
        ("--heads", "num_attention_heads", "attention heads"),
        ("--kv-heads", "num_key_value_heads", "key and value heads"),
        ("--head-dim", "head_dim", "width of a head"),
        ("--vocab-size", "vocab_size", "tokens in the vocabulary"),
    ):
        parser.add_argument(option, type=int, dest=field, metavar="N", help=f"{what} (default: the shape's)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of all tensors (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: %(default)s)")
    parser.add_argument(
        "--shard-bytes", type=int, metavar="N", help="size at which weight files are cut (default: 5e9)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write the checkpoint and return an exit status."""
    options = vars(build_parser().parse_args(argv))
    own = {name: options.pop(name) for name in ("output", "shape", "dtype", "seed", "shard_bytes")}
    overrides = {name: value for name, value in options.items() if value is not None}
    return run_command(lambda: _write(overrides=overrides, **own))


def _write(
    output: Path, shape: str, dtype: str, seed: int, shard_bytes: int | None, overrides: Mapping[str, int]
) -> None:
    write_random_checkpoint(output, shape=shape, dtype=dtype, seed=seed, shard_bytes=shard_bytes, overrides=overrides)
    written = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    print(f"{output}: {written / 1e9:.2f} GB of weights", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
