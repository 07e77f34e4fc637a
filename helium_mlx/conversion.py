"""`convert`: a Hugging Face checkpoint in, a self-contained MLX directory out, at full precision or quantized.

Tensors are read, quantized and written one module at a time; the model is never built. The directory is written beside
its destination and renamed, so that it is there whole or not at all. Names and shapes on disk are transformers' (see
`layout.py`), and mlx-lm and mlx-swift-lm open the result.
"""

import hashlib
import math
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from helium_mlx import __version__, layout
from helium_mlx.card import interoperability_warnings, model_card
from helium_mlx.checkpoint import Checkpoint, open_checkpoint, read_tensors
from helium_mlx.config import CONFIG_FILE, DTYPES, HeliumConfig
from helium_mlx.errors import CheckpointError, ConfigError, QuantizationError
from helium_mlx.generation_config import GENERATION_CONFIG_FILE, GenerationConfig
from helium_mlx.hub import resolve
from helium_mlx.quantization import ModuleSettings, QuantizationSettings, require_divisible, unquantized
from helium_mlx.safetensors_writer import TensorPlan, plan_bytes
from helium_mlx.saving import generation_values
from helium_mlx.tokenizer import HeliumTokenizer
from helium_mlx.weight_files import new_directory, write_json, write_weights

CONVERSION_FILE = "conversion.json"
CARD_FILE = "README.md"

# What a checkpoint directory may hold: --overwrite replaces nothing else.
_CHECKPOINT_FILE = re.compile(
    r".*\.safetensors|.*\.json|tokenizer.*\.model|.*\.jinja|README\.md|LICEN[CS]E.*|NOTICE.*|\.gitattributes|\.DS_Store"
)


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did: also the contents of `conversion.json`, the directory aside.

    `files` and `source_files` map names to SHA-256; `total_bytes` counts the weight files' tensors; `seconds` is wall
    time, `peak_memory` MLX's in bytes; `warnings` say where another program would not read the result as we do.
    """

    mlx_path: str
    source: str
    revision: str | None
    source_files: dict[str, str]
    files: dict[str, str]
    dtype: str
    quantization: dict[str, object] | None
    bits_per_weight: float
    total_bytes: int
    seconds: float
    peak_memory: int
    versions: dict[str, str]
    warnings: list[str]


def convert(
    hf_path: str,
    mlx_path: str,
    *,
    revision: str | None = None,
    quantize: bool = False,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> ConversionReport:
    """Convert a checkpoint (directory, Hub repository, or "demo") into the MLX directory `mlx_path`.

    `quantize` gives `q_bits` = 4 bits in groups of `q_group_size` = 64, affine. `dtype` (bfloat16, float16, float32) is
    what the other tensors, scales and biases are stored in; None keeps the source's. An existing `mlx_path` is
    refused, or with `overwrite` replaced once the new one is complete. `on_progress(done, total)` counts bytes written.

    Raises CheckpointError, ConfigError, QuantizationError or TokenizerError; nothing is left behind then.
    """
    start = time.perf_counter()
    packing = _packing(quantize, q_bits, q_group_size)
    destination = Path(mlx_path)
    _require_free(destination, overwrite=overwrite)
    source = open_checkpoint(resolve(hf_path, revision=revision))
    _require_source(source, destination, dtype)
    tokenizer = HeliumTokenizer.from_pretrained(source.directory)
    if packing:
        shapes = layout.weight_shapes(source.config)
        require_divisible(((path, columns) for path, (_, columns) in shapes), packing.group_size)

    config = _converted_config(source, packing, dtype)
    with new_directory(destination, replace=overwrite) as directory:
        tokenizer.save_pretrained(directory)
        write_json(directory / CONFIG_FILE, config.to_dict())
        _write_generation_config(source, directory)
        total_bytes = _write_weights(source, config, directory, packing, on_progress)
        report = ConversionReport(
            mlx_path=str(destination),
            source=str(hf_path),
            revision=_commit(source.directory) or revision,
            source_files={path.name: _sha256(path) for path in source.files},
            files={path.name: _sha256(path) for path in sorted(directory.iterdir())},
            dtype=str(config.dtype),
            quantization=packing.to_dict() if packing else None,
            bits_per_weight=round(8 * total_bytes / _parameter_count(config), 3),
            total_bytes=total_bytes,
            seconds=round(time.perf_counter() - start, 3),
            peak_memory=mx.get_peak_memory(),
            versions=_versions(),
            warnings=interoperability_warnings(config),
        )
        record = asdict(report)
        del record["mlx_path"]
        write_json(directory / CONVERSION_FILE, record)
        card = model_card(destination.name, source.directory, config, report.source, report.revision)
        (directory / CARD_FILE).write_text(card, encoding="utf-8")
    return report


def _packing(quantize: bool, bits: int | None, group_size: int | None) -> QuantizationSettings | None:
    if quantize:
        return QuantizationSettings(64 if group_size is None else group_size, 4 if bits is None else bits)
    given = [name for name, value in (("q_bits", bits), ("q_group_size", group_size)) if value is not None]
    if given:
        raise QuantizationError(f"{given[0]} is given, but the checkpoint is not to be quantized; add -q (quantize)")
    return None


def _require_free(destination: Path, *, overwrite: bool) -> None:
    if not destination.exists() and not destination.is_symlink():
        return
    if destination.is_symlink() or not destination.is_dir():
        raise CheckpointError(f"{destination} is there already and no directory; choose another name")
    if not overwrite:
        raise CheckpointError(f"{destination} is there already; choose another name, or replace it with --overwrite")
    strangers = sorted(p.name for p in destination.iterdir() if p.is_dir() or not _CHECKPOINT_FILE.fullmatch(p.name))
    if strangers:
        raise CheckpointError(
            f"{destination} holds {strangers[0]}, which is no part of a checkpoint, so --overwrite leaves it alone; "
            "choose another name, or move that away"
        )


def _require_source(source: Checkpoint, destination: Path, dtype: str | None) -> None:
    if destination.resolve() == source.directory.resolve():
        raise CheckpointError(f"{destination} is the source itself; write to another directory")
    if source.is_quantized:
        raise CheckpointError(f"{source.directory} is quantized already; convert the full-precision checkpoint")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; known are {', '.join(DTYPES)}")


def _converted_config(source: Checkpoint, packing: QuantizationSettings | None, dtype: str | None) -> HeliumConfig:
    quantization = packing.to_dict() if packing else None
    config = replace(source.config, dtype=dtype or source.dtype, quantization=quantization)
    if config.eos_token_id is None:
        # Swift loaders read it from config.json only.
        config.eos_token_id = GenerationConfig.of_directory(source.directory, config).eos_token_id
    return config


def _write_weights(
    source: Checkpoint,
    config: HeliumConfig,
    directory: Path,
    packing: QuantizationSettings | None,
    on_progress: Callable[[int, int], None] | None,
) -> int:
    """Write the weight files; return the bytes of all tensors."""
    settings: ModuleSettings = dict.fromkeys((path for path, _ in layout.weight_shapes(config)), packing).get
    plans = dict(_plans(config, settings))
    total = sum(map(plan_bytes, plans.values()))
    for done in write_weights(directory, plans, _converted_tensors(source, config, settings)):
        if on_progress:
            on_progress(done, total)
    return total


def _converted_tensors(
    source: Checkpoint, config: HeliumConfig, settings: ModuleSettings
) -> Iterator[tuple[str, mx.array]]:
    tensors = read_tensors(source)
    for name in list(tensors):
        # Popped, so that nothing keeps a tensor once it is written.
        yield from _converted(name, tensors.pop(name), config, settings).items()


def _plans(config: HeliumConfig, settings: ModuleSettings) -> Iterator[tuple[str, TensorPlan]]:
    dtype = getattr(mx, str(config.dtype))
    for name, shape in layout.tensor_shapes(config, settings):
        path, _, suffix = name.rpartition(".")
        packed = suffix == "weight" and settings(path) is not None
        yield name, (mx.uint32 if packed else dtype, shape)


def _converted(name: str, tensor: mx.array, config: HeliumConfig, settings: ModuleSettings) -> dict[str, mx.array]:
    """Return what one source tensor becomes, evaluated: itself in the new dtype, or codes, scales and biases."""
    path, _, suffix = name.rpartition(".")
    packing = settings(path) if suffix == "weight" else None
    tensor = tensor.astype(getattr(mx, str(config.dtype)))
    if packing is None:
        converted = {name: tensor}
    else:
        arrays = mx.quantize(tensor, packing.group_size, packing.bits, packing.mode)
        converted = {f"{path}.{part}": array for part, array in zip(("weight", "scales", "biases"), arrays)}  # noqa: B905
    mx.eval(converted)
    for part, array in converted.items():
        if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
            raise CheckpointError(f"{part} has values in {config.dtype} that are not finite; try another --dtype")
    return converted


def _parameter_count(config: HeliumConfig) -> int:
    return sum(math.prod(shape) for _, shape in layout.tensor_shapes(config, unquantized))


def _write_generation_config(source: Checkpoint, directory: Path) -> None:
    path = source.directory / GENERATION_CONFIG_FILE
    if path.is_file():
        shutil.copyfile(path, directory / GENERATION_CONFIG_FILE)
        return
    write_json(directory / GENERATION_CONFIG_FILE, generation_values(source.config))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _commit(directory: Path) -> str | None:
    """Return the commit of a directory inside the Hub's cache, which names snapshots by it."""
    return directory.name if directory.parent.name == "snapshots" else None


def _versions() -> dict[str, str]:
    return {"helium_mlx": __version__, "mlx": version("mlx"), "python": platform.python_version()}
