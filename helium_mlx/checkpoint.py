"""From a checkpoint directory to a model. Reads safetensors only, and checks names and shapes before any tensor.

Tensors go by their names in a causal LM (`model.layers...`), also where a directory holds the bare decoder, whose
names lack the `model.`. What this file does not do: download (see `hub.py`), write (see `saving.py`).
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import mlx.core as mx

from helium_mlx import backend, layout
from helium_mlx.activations import XIELU
from helium_mlx.config import CONFIG_FILE, DTYPES, HeliumConfig
from helium_mlx.errors import CheckpointError, ConfigError
from helium_mlx.generation_config import GenerationConfig
from helium_mlx.layout import HEAD_PREFIXES, Architecture
from helium_mlx.model import HeliumForCausalLM
from helium_mlx.pretrained import HeliumPreTrainedModel
from helium_mlx.quantization import ModuleSettings, module_settings, unquantized
from helium_mlx.safetensors_header import FLOAT_DTYPES, TensorInfo, read_header

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

DEMO_NAME = "demo"
DEMO_DIRECTORY = Path(__file__).parent / "demo"

BODY_PREFIX = "model."

Model = TypeVar("Model", bound=HeliumPreTrainedModel)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory whose config, file names, tensor names and shapes have been checked.

    `files` maps each weight file to its tensors, by their names on disk; `settings` says how each module is packed.
    `missing_head` and `foreign_heads` name tensors that the architecture lacks and does not use.
    """

    directory: Path
    config: HeliumConfig
    architecture: Architecture
    files: dict[Path, dict[str, TensorInfo]]
    settings: ModuleSettings
    missing_head: tuple[str, ...] = ()
    foreign_heads: tuple[str, ...] = ()

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor that the model uses, keyed by its name in a causal LM."""
        return {
            self.name_of(name): info
            for infos in self.files.values()
            for name, info in infos.items()
            if not self.is_ignored(name)
        }

    @property
    def is_bare(self) -> bool:
        """Whether the directory holds the bare decoder, whose names on disk lack the `model.`."""
        return not any(name.startswith(BODY_PREFIX) for infos in self.files.values() for name in infos)

    @property
    def is_quantized(self) -> bool:
        """Whether any module is quantized."""
        return any(name.endswith(".scales") for name in self.tensors)

    @property
    def dtype(self) -> str:
        """The floating-point dtype of most tensors: bfloat16, float16 or float32."""
        found = [FLOAT_DTYPES[info.dtype] for info in self.tensors.values() if info.dtype in FLOAT_DTYPES]
        return max(DTYPES, key=found.count)

    def name_of(self, name_on_disk: str) -> str:
        """Return a tensor's name in a causal LM."""
        return BODY_PREFIX + name_on_disk if self.is_bare and not _is_head(name_on_disk) else name_on_disk

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor may be in the files without the model using it, as transformers ignores it."""
        tied = self.config.tie_word_embeddings and name.startswith("lm_head.")
        return tied or name.endswith("rotary_emb.inv_freq") or name in self.foreign_heads


def open_checkpoint(
    directory: str | Path,
    *,
    architecture: Architecture = "ForCausalLM",
    any_head: bool = False,
    config_values: Mapping[str, object] | None = None,
) -> Checkpoint:
    """Check a checkpoint directory and return what it holds; no tensor is read.

    With `any_head`, the architecture's head may be missing and heads of other kinds may be there.
    `config_values` replace what the directory's config says.

    Raises CheckpointError for files, names or shapes that do not fit, ConfigError and QuantizationError for a
    `config.json` that no model can be built from.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; give a checkpoint directory, a Hub id or 'demo'")
    config = HeliumConfig.from_json_file(directory / CONFIG_FILE)
    if config_values:
        config = config.with_values(config_values)
    files = {path: read_header(path) for path in weight_files(directory)}
    names = [name for infos in files.values() for name in infos]
    _require_unique(directory, names)
    missing_head: tuple[str, ...] = ()
    foreign_heads: tuple[str, ...] = ()
    if any_head:
        head = layout.head_shapes(config, architecture)
        foreign_heads = tuple(name for name in names if _is_head(name) and _base_name(name) not in head)
        missing_head = tuple(
            name for name in head if name not in names and name.replace(".weight", ".scales") not in names
        )
    checkpoint = Checkpoint(directory, config, architecture, files, unquantized, missing_head, foreign_heads)
    checkpoint = replace(checkpoint, settings=module_settings(config.quantization, checkpoint.tensors))
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


def load_model(checkpoint: Checkpoint | str | Path, *, dtype: str | mx.Dtype | None = None) -> HeliumForCausalLM:
    """Return the causal LM of a checkpoint, opened or named by its directory, weights evaluated, ready to run.

    `dtype` is one of bfloat16, float16, float32; None is the checkpoint's own, or float32 for quantized weights on
    the CPU (see `backend.py`). Quantized codes stay as they are; scales, biases and everything else take it.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
    return _build(HeliumForCausalLM, opened, dtype)


def load_pretrained(
    model_class: type[Model],
    directory: str | Path,
    *,
    dtype: str | mx.Dtype | None = None,
    config_values: Mapping[str, object] | None = None,
) -> Model:
    """Return a model of any class, with a warning that names a head that had to be initialised or was left out."""
    architecture = model_class.architecture
    checkpoint = open_checkpoint(directory, architecture=architecture, any_head=True, config_values=config_values)
    said = []
    if checkpoint.missing_head:
        said.append(f"{', '.join(checkpoint.missing_head)} not there, so initialised: train it before use")
    if checkpoint.foreign_heads:
        said.append(f"{', '.join(checkpoint.foreign_heads)} left out, since {model_class.__name__} has no such head")
    if said:
        warnings.warn(f"{checkpoint.directory}: {'; '.join(said)}", stacklevel=3)
    return _build(model_class, checkpoint, dtype)


def _build(model_class: type[Model], checkpoint: Checkpoint, dtype: str | mx.Dtype | None) -> Model:
    config, target = checkpoint.config, _parse_dtype(dtype)
    if target is None:
        target = backend.compute_dtype(getattr(mx, checkpoint.dtype), quantized=checkpoint.is_quantized)
    model = model_class(config, checkpoint.settings)  # pyright: ignore[reportCallIssue]
    if isinstance(model, HeliumForCausalLM):
        model.generation_config = GenerationConfig.of_directory(checkpoint.directory, config)
    weights = {name: _as_dtype(name, tensor, target, config) for name, tensor in read_tensors(checkpoint).items()}
    weights = layout.merge_projections(weights, config, checkpoint.settings)
    if model.architecture == "Model":
        weights = {name.removeprefix(BODY_PREFIX): tensor for name, tensor in weights.items()}
    weights |= {
        name: tensor.astype(target) for name, tensor in model.tensors().items() if name in checkpoint.missing_head
    }
    model.load_weights(list(weights.items()))
    del weights
    # One layer at a time: the parts of a merged projection are let go before the next layer is read.
    for layer in model.body.layers:
        mx.eval(layer.parameters())
    mx.eval(model.parameters())
    model.eval()
    return model


def read_tensors(checkpoint: Checkpoint) -> dict[str, mx.array]:
    """Return the checkpoint's tensors, keyed by their names in a causal LM; MLX reads each when it is first used."""
    tensors: dict[str, mx.array] = {}
    for path in checkpoint.files:
        try:
            loaded = mx.load(str(path))
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: MLX cannot read it ({error})") from None
        assert isinstance(loaded, dict)
        tensors |= {
            checkpoint.name_of(name): tensor for name, tensor in loaded.items() if not checkpoint.is_ignored(name)
        }
    return tensors


def _as_dtype(name: str, tensor: mx.array, dtype: mx.Dtype, config: HeliumConfig) -> mx.array:
    if config.hidden_act == "xielu" and ".act_fn." in name:
        return tensor.astype(XIELU.dtype)
    return tensor.astype(dtype) if mx.issubdtype(tensor.dtype, mx.floating) else tensor


def _parse_dtype(dtype: str | mx.Dtype | None) -> mx.Dtype | None:
    if dtype is None:
        return None
    dtype = str(dtype).removeprefix("mlx.core.") if isinstance(dtype, mx.Dtype) else dtype
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
    shapes = layout.tensor_shapes(checkpoint.config, checkpoint.settings, checkpoint.architecture)
    wanted = (item for item in shapes if item[0] not in checkpoint.missing_head)
    expected = dict(islice(wanted, len(found) + 1000))
    where = checkpoint.directory
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in found]
    if missing:
        raise CheckpointError(f"{where}: config.json asks for tensors that are missing: {_listing(missing)}")
    extra = [f"{name} {list(shape)}" for name, shape in found.items() if name not in expected]
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


def _is_head(name: str) -> bool:
    return name.startswith(HEAD_PREFIXES)


def _base_name(name: str) -> str:
    """Return what a head's tensor is called unquantized."""
    path, _, suffix = name.rpartition(".")
    return f"{path}.weight" if suffix in ("scales", "biases") else name


def _listing(items: list[str]) -> str:
    return ", ".join(items[:9]) + (f" and {len(items) - 9} more" if len(items) > 9 else "")
