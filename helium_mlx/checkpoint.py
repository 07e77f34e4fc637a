"""From a checkpoint directory to a model. Reads safetensors only, and checks names and shapes before any tensor.

What it does not do: download (see `hub.py`), convert (see `conversion.py`).
"""

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import mlx.core as mx

from helium_mlx import backend, layout
from helium_mlx.activations import XIELU
from helium_mlx.config import CONFIG_FILE, DTYPES, HeliumConfig
from helium_mlx.errors import CheckpointError, ConfigError
from helium_mlx.model import HeliumForCausalLM
from helium_mlx.quantization import ModuleSettings, module_settings
from helium_mlx.safetensors_header import FLOAT_DTYPES, TensorInfo, read_header

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

DEMO_NAME = "demo"
DEMO_DIRECTORY = Path(__file__).parent / "demo"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory whose config, file names, tensor names and shapes have been checked.

    `files` maps each weight file to its tensors; `settings` says how each module is packed.
    """

    directory: Path
    config: HeliumConfig
    files: dict[Path, dict[str, TensorInfo]]
    settings: ModuleSettings

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor that the model uses, keyed by its name on disk."""
        return {
            name: info
            for infos in self.files.values()
            for name, info in infos.items()
            if not is_ignored(name, self.config)
        }

    @property
    def is_quantized(self) -> bool:
        """Whether any module is quantized."""
        return any(name.endswith(".scales") for name in self.tensors)

    @property
    def dtype(self) -> str:
        """The floating-point dtype of most tensors: bfloat16, float16 or float32."""
        found = [FLOAT_DTYPES[info.dtype] for info in self.tensors.values() if info.dtype in FLOAT_DTYPES]
        return max(DTYPES, key=found.count)


def open_checkpoint(directory: str | Path) -> Checkpoint:
    """Check a checkpoint directory and return what it holds; no tensor is read.

    Raises CheckpointError for files, names or shapes that do not fit, ConfigError and QuantizationError for a
    `config.json` that no model can be built from.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; give a checkpoint directory, a Hub id or 'demo'")
    config = HeliumConfig.from_json_file(directory / CONFIG_FILE)
    files = {path: read_header(path) for path in weight_files(directory)}
    names = [name for infos in files.values() for name in infos]
    checkpoint = Checkpoint(directory, config, files, module_settings(config.quantization, names))
    _require_unique(directory, names)
    _require_expected(checkpoint)
    return checkpoint


def weight_files(directory: Path) -> list[Path]:
    """Return the weight files of a checkpoint: `model.safetensors`, or the shards that the index names."""
    index = directory / INDEX_FILE
    if index.exists():
        return [directory / name for name in _shard_names(index)]
    if (directory / WEIGHTS_FILE).exists():
        return [directory / WEIGHTS_FILE]
    found = sorted(path.name for path in directory.iterdir() if path.is_file())
    raise CheckpointError(
        f"{directory}: neither {WEIGHTS_FILE} nor {INDEX_FILE} is there (found: {', '.join(found[:8]) or 'nothing'}); "
        "only safetensors checkpoints are read"
    )


def is_ignored(name: str, config: HeliumConfig) -> bool:
    """Whether a tensor may be in the file without the model using it, as transformers ignores it."""
    return name.endswith("rotary_emb.inv_freq") or (config.tie_word_embeddings and name.startswith("lm_head."))


def load_model(directory: str | Path, *, dtype: str | None = None) -> HeliumForCausalLM:
    """Return the model of a checkpoint directory, weights evaluated, ready to run.

    `dtype` is one of bfloat16, float16, float32; None is the checkpoint's own, or float32 for quantized weights on
    the CPU (see `backend.py`). Quantized codes stay as they are; scales, biases and everything else take it.
    """
    checkpoint = open_checkpoint(directory)
    config, target = checkpoint.config, _parse_dtype(dtype)
    if target is None:
        target = backend.compute_dtype(getattr(mx, checkpoint.dtype), quantized=checkpoint.is_quantized)
    model = HeliumForCausalLM(config, checkpoint.settings)
    weights = {name: _as_dtype(name, tensor, target, config) for name, tensor in read_tensors(checkpoint).items()}
    model.load_weights(list(layout.merge_projections(weights, config, checkpoint.settings).items()))
    del weights
    # One layer at a time: the parts of a merged projection are let go before the next layer is read.
    for layer in model.model.layers:
        mx.eval(layer.parameters())
    mx.eval(model.parameters())
    model.eval()
    return model


def read_tensors(checkpoint: Checkpoint) -> dict[str, mx.array]:
    """Return the checkpoint's tensors, keyed by their names on disk; MLX reads each when it is first used."""
    tensors: dict[str, mx.array] = {}
    for path in checkpoint.files:
        try:
            loaded = mx.load(str(path))
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: MLX cannot read it ({error})") from None
        assert isinstance(loaded, dict)
        tensors |= {name: tensor for name, tensor in loaded.items() if not is_ignored(name, checkpoint.config)}
    return tensors


def _as_dtype(name: str, tensor: mx.array, dtype: mx.Dtype, config: HeliumConfig) -> mx.array:
    if config.hidden_act == "xielu" and ".act_fn." in name:
        return tensor.astype(XIELU.dtype)
    return tensor.astype(dtype) if mx.issubdtype(tensor.dtype, mx.floating) else tensor


def _parse_dtype(dtype: str | None) -> mx.Dtype | None:
    if dtype is None:
        return None
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; known are {', '.join(DTYPES)}")
    return getattr(mx, dtype)


def _shard_names(index: Path) -> list[str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{index}: not an index; it needs an object weight_map of tensor: file name") from None
    for name in names:
        # A name from a stranger's file must not lead out of the directory.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: shard name {name!r} must be a bare name that ends in .safetensors")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: names {name}, which is not there; the download may be incomplete")
    return names


def _require_unique(directory: Path, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise CheckpointError(f"{directory}: tensor {name!r} is in two files; keep one")
        seen.add(name)


def _require_expected(checkpoint: Checkpoint) -> None:
    """Compare the tensors with what the config asks for, before a model of that size is built."""
    found = {name: info.shape for name, info in checkpoint.tensors.items()}
    # A config can ask for any number of layers: look no further than the files can satisfy.
    expected = dict(islice(layout.tensor_shapes(checkpoint.config, checkpoint.settings), len(found) + 1))
    where = checkpoint.directory
    missing = [name for name in expected if name not in found]
    if missing:
        raise CheckpointError(f"{where}: config.json asks for tensors that are missing: {_listing(missing)}")
    extra = [name for name in found if name not in expected]
    if extra:
        raise CheckpointError(f"{where}: the files hold tensors that config.json has no place for: {_listing(extra)}")
    wrong = [f"{name} is {list(found[name])}, expected {list(shape)}" for name, shape in expected.items()
             if found[name] != shape]  # fmt: skip
    if wrong:
        raise CheckpointError(f"{where}: tensor shapes do not fit config.json: {_listing(wrong)}")
    strange = [f"{name} is {info.dtype}, expected {' or '.join(allowed)}"
               for name, info in checkpoint.tensors.items()
               if info.dtype not in (allowed := _allowed_dtypes(name, checkpoint.settings))]  # fmt: skip
    if strange:
        raise CheckpointError(f"{where}: tensor dtypes that cannot be read: {_listing(strange)}")


def _allowed_dtypes(name: str, settings: ModuleSettings) -> tuple[str, ...]:
    path, _, suffix = name.rpartition(".")
    packing = settings(path)
    if packing is not None and suffix == "weight":
        return ("U32",)
    if packing is not None and suffix == "scales" and packing.mode != "affine":
        return ("U8",)
    return tuple(FLOAT_DTYPES)


def _listing(items: list[str]) -> str:
    return ", ".join(items[:4]) + (f" and {len(items) - 4} more" if len(items) > 4 else "")
