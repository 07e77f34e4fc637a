"""A checkpoint directory, opened: its config, and its tensors by name. Reads safetensors only, and checks names and
shapes before it reads a tensor.

A directory may be a stranger's: nothing in it is run, no file outside of it is read, and no number of its config
costs memory before the tensors confirm it (see `SECURITY.md`).

Tensors go by their names in a causal LM (`model.layers...`), also where a directory holds the bare decoder, whose
names lack the `model.`. What this file does not do: download (see `files/hub.py`) and write (see
`model/serialization.py`).
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple, cast

import mlx.core as mx

from helium_mlx import backend
from helium_mlx.checkpoint import kyutai_layout, layout
from helium_mlx.checkpoint.adapters import require_model, unapplied_adapter
from helium_mlx.checkpoint.config import DTYPES, ConfigFile, HeliumConfig, foreign_quantization_problem, read_config
from helium_mlx.checkpoint.kyutai_config import find_kyutai_file, has_kyutai_names
from helium_mlx.checkpoint.layout import BODY_PREFIX, HEAD_PREFIXES, Architecture, architecture_of
from helium_mlx.checkpoint.quantization_settings import ModuleSettings, module_settings, unquantized
from helium_mlx.errors import CheckpointError, ConfigError, QuantizationError, one_line, shown
from helium_mlx.files.names import (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    INDEX_FILE,
    TOKENIZER_CONFIG_FILE,
    WEIGHTS_FILE,
)
from helium_mlx.files.safetensors_header import BYTES_PER_VALUE, FLOAT_DTYPES, TensorInfo, read_header
from helium_mlx.files.safetensors_reader import TensorReader
from helium_mlx.files.untrusted import FileProblem, UnreadableFile, read_json_object

# Published Heliums have one to three shards.
MAX_SHARDS = 1000
_LM_HEAD, _EMBEDDING = "lm_head.", "embed_tokens."
_COMPARED_BYTES = 16_000_000
_LAYER = re.compile(rf"(?:{re.escape(BODY_PREFIX)})?layers\.(\d{{1,9}})\.", re.ASCII)
_SHARD_NAME = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)

# transformers keeps the parameters of xIELU in bfloat16 whatever the model's dtype.
XIELU_DTYPE = mx.bfloat16

# Keys of config.json and tokenizer_config.json by which other programs run code of the repository, or with it.
CODE_KEYS = ("auto_map", "custom_pipelines", "model_file", "trust_remote_code")

# Formats that other programs read, by the ends of their files; pickles run code when they are opened.
_FOREIGN_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz", ".npy", ".gguf", ".h5", ".msgpack", ".onnx")


class Mismatch(NamedTuple):
    """A tensor whose shape on disk is not the model's, by its name in a causal LM."""

    name: str
    found: tuple[int, ...]
    expected: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory whose config, file names, tensor names and shapes have been checked.

    `files` maps each weight file to its tensors, by their names on disk; `settings` says how each module is quantized.
    With `is_kyutai`, names and byte ranges are those that `kyutai_layout` gives the parts of Kyutai's tensors.
    `missing` names tensors that the model has and the files lack, `left_out` those on disk that it does not use (heads
    of other kinds, and layers beyond those asked for), and `mismatched` those of another shape, which it does not use
    either. With `head_is_embedding`, the files hold a tied matrix under the head's name only. `warnings` are sentences
    for the user about what in the directory was ignored.
    """

    directory: Path
    config: HeliumConfig
    architecture: Architecture
    files: dict[Path, dict[str, TensorInfo]]
    settings: ModuleSettings
    missing: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    warnings: tuple[str, ...] = ()
    is_kyutai: bool = False
    head_is_embedding: bool = False

    # Cached: a file may hold thousands of tensors, and each is asked about.
    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor that the model uses, keyed by its name in a causal LM."""
        return {
            self.name_of(name): info
            for infos in self.files.values()
            for name, info in infos.items()
            if not self.is_ignored(name)
        }

    @cached_property
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
        if self.head_is_embedding and name_on_disk.startswith(_LM_HEAD):
            return f"{BODY_PREFIX}{_EMBEDDING}{name_on_disk.removeprefix(_LM_HEAD)}"
        return BODY_PREFIX + name_on_disk if self.is_bare and not _is_head(name_on_disk) else name_on_disk

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor may be in the files without the model using it, as transformers ignores it."""
        if name in self._left_out or self.name_of(name) in self._reshaped:
            return True
        return _is_unused(name, self.config) and not self._is_shared_head(name)

    def _is_shared_head(self, name: str) -> bool:
        return self.head_is_embedding and name.startswith(_LM_HEAD)

    @cached_property
    def _left_out(self) -> frozenset[str]:
        return frozenset(self.left_out)

    @cached_property
    def _reshaped(self) -> frozenset[str]:
        return frozenset(tensor.name for tensor in self.mismatched)

    @property
    def initialised(self) -> tuple[str, ...]:
        """The tensors that the files do not give the model, by their names in a causal LM."""
        return (*self.missing, *(tensor.name for tensor in self.mismatched))


def open_checkpoint(
    directory: str | Path,
    *,
    architecture: Architecture | None = "ForCausalLM",
    any_head: bool = False,
    config: HeliumConfig | None = None,
    config_values: Mapping[str, object] | None = None,
    ignore_mismatched_sizes: bool = False,
) -> Checkpoint:
    """Check a checkpoint directory and return what it holds; no tensor is read.

    `architecture` None is the one that the config names. With `any_head`, the architecture's head may be missing and
    heads of other kinds may be there. `config` stands in for the directory's, and `config_values` replace what it says;
    layers beyond a `num_hidden_layers` of theirs are left out. With `ignore_mismatched_sizes` so are tensors of another
    shape, unless they are quantized.

    Raises CheckpointError for files, names or shapes that do not fit, ConfigError and QuantizationError for a
    `config.json` that no model can be built from.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; give a checkpoint directory, a Hub id or 'demo'")
    require_model(directory)
    found = read_config(directory)
    own_layers = found.config.num_hidden_layers
    config = found.config if config is None else config.with_values({"quantization": found.config.quantization})
    config = config.with_values(config_values) if config_values else config
    if architecture is None:
        architecture = architecture_of(config)
    weight_files = _find_weight_files(directory)
    files = {path: read_header(path) for path in weight_files.paths}
    is_kyutai = weight_files.index is None and any(map(has_kyutai_names, files.values()))
    if is_kyutai:
        ((path, infos),) = files.items()
        config, files[path] = kyutai_layout.read_as_transformers(path, infos, config)
    names = [name for infos in files.values() for name in infos]
    _require_unique(directory, names)
    if weight_files.index is not None:
        _require_indexed(directory, files, weight_files.index, config)
    said = [*found.warnings, *weight_files.warnings, *ignored_code(directory, config)]
    said += [*unreadable_generation_config(directory), *unapplied_adapter(directory)]
    if architecture == "ForCausalLM" and config.tie_word_embeddings and _has_another_head(files):
        config = replace(config, tie_word_embeddings=False)
        said.append("lm_head differs from the embedding, so the two are not tied, though tie_word_embeddings says so")
    missing: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    if any_head:
        head = layout.head_shapes(config, architecture)
        left_out = tuple(name for name in names if _is_head(name) and _base_name(name) not in head)
        missing = tuple(name for name in head if name not in names and name.replace(".weight", ".scales") not in names)
    if config.num_hidden_layers < own_layers:
        left_out += tuple(name for name in names if _is_layer_from(config.num_hidden_layers, name))
    checkpoint = Checkpoint(directory, config, architecture, files, unquantized, missing, left_out)
    if architecture == "ForCausalLM" and config.tie_word_embeddings and not _parts_of(files, _EMBEDDING):
        left_out = tuple(name for name in left_out if not name.startswith(_LM_HEAD))
        checkpoint = replace(checkpoint, left_out=left_out, head_is_embedding=True)
    checkpoint = replace(checkpoint, is_kyutai=is_kyutai)
    return _checked(checkpoint, found, said, ignore_mismatched_sizes=ignore_mismatched_sizes)


def _checked(
    checkpoint: Checkpoint, found: ConfigFile, said: list[str], *, ignore_mismatched_sizes: bool
) -> Checkpoint:
    """Return the checkpoint with its settings and warnings, once tensors and config fit each other."""
    path = checkpoint.directory / CONFIG_FILE
    try:
        settings = module_settings(checkpoint.config.quantization, checkpoint.tensors)
        checkpoint = replace(checkpoint, settings=settings)
        if ignore_mismatched_sizes:
            checkpoint = _without_mismatched(checkpoint)
        _require_expected(checkpoint)
    except QuantizationError as error:
        problem = foreign_quantization_problem(found.foreign_quantization) if found.foreign_quantization else str(error)
        raise QuantizationError(f"{path}: {one_line(problem)}") from None
    except CheckpointError:
        if found.foreign_quantization is None:
            raise
        raise ConfigError(f"{path}: {foreign_quantization_problem(found.foreign_quantization)}") from None
    _require_whole_groups(checkpoint)
    if found.foreign_quantization is not None and not checkpoint.is_quantized:
        said.append(f"quantization_config of {found.foreign_quantization} left out: no tensor is quantized")
    return replace(checkpoint, warnings=tuple(said))


def ignored_code(directory: Path, config: HeliumConfig) -> tuple[str, ...]:
    """Return a sentence that names what in a checkpoint's configs asks for code to be run; none where nothing does."""
    path = directory / TOKENIZER_CONFIG_FILE
    try:
        tokenizer_config = read_json_object(path) if os.path.lexists(path) else {}
    except FileProblem as problem:
        raise CheckpointError(f"{path}: {problem}") from None
    found = [
        f"{key} in {file}"
        for file, values in ((CONFIG_FILE, config.extra), (TOKENIZER_CONFIG_FILE, tokenizer_config))
        for key in CODE_KEYS
        if values.get(key)
    ]
    return (f"{', '.join(found)} ignored: no code from a checkpoint is run",) if found else ()


def unreadable_generation_config(directory: Path) -> tuple[str, ...]:
    """Return a sentence about a `generation_config.json` that cannot be read; none where it can, or is not there."""
    path = directory / GENERATION_CONFIG_FILE
    if not os.path.lexists(path):
        return ()
    try:
        read_json_object(path)
    except FileProblem as problem:
        return (f"{GENERATION_CONFIG_FILE} {problem}; {CONFIG_FILE} says when text ends",)
    return ()


def weight_bytes(checkpoint: Checkpoint, dtype: str | mx.Dtype | None = None) -> int:
    """Return what the weights will take once `load_model` has loaded them, without reading any."""
    config, target = checkpoint.config, compute_dtype(checkpoint, dtype)

    def value_bytes(name: str, info: TensorInfo) -> int:
        if info.dtype not in FLOAT_DTYPES:
            return BYTES_PER_VALUE[info.dtype]
        return parameter_dtype(name, target, config).size

    return sum(math.prod(info.shape) * value_bytes(name, info) for name, info in checkpoint.tensors.items())


def read_tensors(checkpoint: Checkpoint) -> dict[str, mx.array]:
    """Return the checkpoint's tensors, keyed by their names in a causal LM; MLX reads each when it is first used.

    Those of Kyutai's layout, which MLX does not know by these names, are read at once.
    """
    tensors: dict[str, mx.array] = {}
    for path, infos in checkpoint.files.items():
        if checkpoint.is_kyutai:
            reader = TensorReader(path)
            tensors |= {name: reader.read(info) for name, info in infos.items() if not checkpoint.is_ignored(name)}
            continue
        try:
            loaded = mx.load(str(path))
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: MLX cannot read it ({error})") from None
        assert isinstance(loaded, dict)
        if {name: tensor.shape for name, tensor in loaded.items()} != {name: infos[name].shape for name in infos}:
            raise CheckpointError(f"{path}: was replaced while the checkpoint was being read; try again")
        tensors |= {
            checkpoint.name_of(name): tensor for name, tensor in loaded.items() if not checkpoint.is_ignored(name)
        }
    return tensors


def as_parameter(name: str, tensor: mx.array, dtype: mx.Dtype, config: HeliumConfig) -> mx.array:
    """Return a tensor in the dtype that it has in a model which computes in `dtype`."""
    return tensor.astype(parameter_dtype(name, dtype, config)) if mx.issubdtype(tensor.dtype, mx.floating) else tensor


def parameter_dtype(name: str, dtype: mx.Dtype, config: HeliumConfig) -> mx.Dtype:
    """Return the dtype that a floating-point tensor has in a model which computes in `dtype`."""
    return XIELU_DTYPE if config.hidden_act == "xielu" and ".act_fn." in name else dtype


def compute_dtype(checkpoint: Checkpoint, dtype: str | mx.Dtype | None) -> mx.Dtype:
    """Return the dtype that a model of this checkpoint computes in when `dtype` is asked for, None being its own."""
    target = parse_dtype(dtype)
    if target is None:
        return backend.compute_dtype(getattr(mx, checkpoint.dtype), quantized=checkpoint.is_quantized)
    return target


def parse_dtype(dtype: object) -> mx.Dtype | None:
    """Return the dtype that a name, or a dtype of MLX or torch, stands for; None for None and "auto"."""
    if dtype is None or dtype == "auto":
        return None
    # torch's are called torch.float16 and so on.
    dtype = backend.dtype_name(dtype) if isinstance(dtype, mx.Dtype) else str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {shown(dtype)}; known are {', '.join(DTYPES)}")
    return getattr(mx, dtype)


def _read_weight_map(directory: Path) -> dict[str, str] | None:
    """Return the file name of every tensor that the index names; None where there is no index."""
    index = directory / INDEX_FILE
    if not os.path.lexists(index):
        return None
    try:
        weight_map = read_json_object(index).get("weight_map")
    except UnreadableFile as problem:
        raise CheckpointError(f"{index}: {problem}") from None
    except FileProblem as problem:
        raise CheckpointError(f"{index}: not an index: {problem}") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: not an index: weight_map is {shown(weight_map)}; it must map tensors to file names; "
            "fetch it again"
        )
    # A name from a stranger's file must not lead out of the directory.
    names = list(weight_map.values())
    strange = next((name for name in names if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name)), names)
    if strange is not names:
        raise CheckpointError(
            f"{index}: shard name {shown(strange)} must be a bare name that ends in .safetensors; fetch it again"
        )
    if len(set(names)) > MAX_SHARDS:
        raise CheckpointError(f"{index}: names {len(set(names))} shards; at most {MAX_SHARDS} are read; fetch it again")
    return cast("dict[str, str]", weight_map)


@dataclass(frozen=True)
class _WeightFiles:
    """The weight files of a checkpoint; `index` maps tensors to file names where there are shards."""

    paths: list[Path]
    index: dict[str, str] | None = None
    warnings: tuple[str, ...] = ()


def _find_weight_files(directory: Path) -> _WeightFiles:
    """Return `model.safetensors`, the shards that the index names, or Kyutai's file, in this order, as transformers.

    Shards and an index beside `model.safetensors` are older: a warning names them.
    """
    if os.path.lexists(directory / WEIGHTS_FILE):
        return _WeightFiles([directory / WEIGHTS_FILE], warnings=_left_beside(directory))
    index = _read_weight_map(directory)
    if index is not None:
        paths = [directory / name for name in sorted(set(index.values()))]
        missing = [path.name for path in paths if not os.path.lexists(path)]
        if missing:
            raise CheckpointError(
                f"{directory / INDEX_FILE}: names {_listing(missing)}, which is not there; fetch it, the download may "
                "be incomplete"
            )
        return _WeightFiles(paths, index)
    kyutai_file = find_kyutai_file(directory)
    if kyutai_file is not None:
        return _WeightFiles([kyutai_file])
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    foreign = [name for name in names if name.endswith(_FOREIGN_WEIGHTS)]
    raise CheckpointError(
        f"{directory}: neither {WEIGHTS_FILE} nor {INDEX_FILE} is there "
        f"(found: {_listing([shown(name) for name in foreign or names]) or 'nothing'}); only safetensors checkpoints "
        "are read"
    )


def _left_beside(directory: Path) -> tuple[str, ...]:
    """Return a sentence that names the shards, and the index of some, that lie beside `model.safetensors`."""
    try:
        weight_map = _read_weight_map(directory)
    except CheckpointError:
        weight_map = {}
    # mlx-lm writes an index of the one file.
    if weight_map is None or set(weight_map.values()) == {WEIGHTS_FILE}:
        return ()
    shards = sorted(name for name in set(weight_map.values()) - {WEIGHTS_FILE} if os.path.lexists(directory / name))
    return (f"{_listing([INDEX_FILE, *shards])} left out: {WEIGHTS_FILE} is what is read",)


def _parts_of(files: Mapping[Path, Mapping[str, TensorInfo]], path: str) -> dict[str, tuple[Path, TensorInfo]]:
    """Return the tensors of a module by their suffix, with the file that each lies in."""
    return {
        name.removeprefix(BODY_PREFIX).removeprefix(path): (file, info)
        for file, infos in files.items()
        for name, info in infos.items()
        if name.removeprefix(BODY_PREFIX).startswith(path)
    }


def _has_another_head(files: Mapping[Path, Mapping[str, TensorInfo]]) -> bool:
    """Whether the files hold a head that is not the embedding: other tensors, or other bytes."""
    head, embedding = _parts_of(files, _LM_HEAD), _parts_of(files, _EMBEDDING)
    if not head or not embedding:
        return False
    if {suffix: (info.dtype, info.shape) for suffix, (_, info) in head.items()} != {
        suffix: (info.dtype, info.shape) for suffix, (_, info) in embedding.items()
    }:
        return True
    return any(not _same_bytes(*head[suffix], *embedding[suffix]) for suffix in head)


def _same_bytes(path: Path, info: TensorInfo, other_path: Path, other: TensorInfo) -> bool:
    """Whether two tensors of one shape and dtype are equal; looked at from the start, and no further than they are."""
    reader, other_reader, n_rows = TensorReader(path), TensorReader(other_path), info.shape[0] if info.shape else 1
    step = max(1, _COMPARED_BYTES * n_rows // max(1, info.end - info.start))
    return all(
        reader.read_bytes(info, row, min(step, n_rows - row))
        == other_reader.read_bytes(other, row, min(step, n_rows - row))
        for row in range(0, n_rows, step)
    )


def _is_unused(name: str, config: HeliumConfig) -> bool:
    """Whether a checkpoint of `config` has no use for a tensor that others write."""
    return (config.tie_word_embeddings and name.startswith(_LM_HEAD)) or name.endswith("rotary_emb.inv_freq")


def _require_unique(directory: Path, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise CheckpointError(f"{directory}: tensor {shown(name)} is in two files; keep one")
        seen.add(name)


def _require_indexed(
    directory: Path,
    files: Mapping[Path, Mapping[str, TensorInfo]],
    weight_map: Mapping[str, str],
    config: HeliumConfig,
) -> None:
    """Raise CheckpointError unless every tensor lies in the shard that the index names for it, and in no other.

    The index may still name a head that is tied, and was not written therefore.
    """
    index = directory / INDEX_FILE
    lies_in = {name: path.name for path, infos in files.items() for name in infos}
    absent = [f"{shown(name)} in {file}" for name, file in weight_map.items()
              if lies_in.get(name) != file and not (_is_unused(name, config) and name not in lies_in)]  # fmt: skip
    if absent:
        raise CheckpointError(f"{index}: names {_listing(absent)}, where it is not; fetch index and shards again")
    unnamed = [f"{name} in {file}" for name, file in lies_in.items() if name not in weight_map]
    if unnamed:
        raise CheckpointError(f"{index}: does not name {_listing(unnamed)}; fetch index and shards again")


def _without_mismatched(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint without the tensors of another shape than the model's."""
    expected = _expected_shapes(checkpoint)
    mismatched = (
        Mismatch(name, info.shape, expected[name])
        for name, info in checkpoint.tensors.items()
        if checkpoint.settings(name.rpartition(".")[0]) is None and expected.get(name, info.shape) != info.shape
    )
    return replace(checkpoint, mismatched=tuple(mismatched))


def _expected_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what the files should hold, no more of them than files like these could."""
    # A config can ask for any number of layers.
    shapes = layout.tensor_shapes(checkpoint.config, checkpoint.settings, checkpoint.architecture)
    initialised = frozenset(checkpoint.initialised)
    wanted = (item for item in shapes if item[0] not in initialised)
    return dict(islice(wanted, len(checkpoint.tensors) + 1000))


def _require_expected(checkpoint: Checkpoint) -> None:
    """Compare the tensors with what the config asks for, before a model of that size is built."""
    found = {name: info.shape for name, info in checkpoint.tensors.items()}
    expected = _expected_shapes(checkpoint)
    where = checkpoint.directory
    # Of such, any number of rows would fit into no bytes.
    empty = [f"{name} {list(shape)}" for name, shape in found.items() if 0 in shape]
    if empty:
        raise CheckpointError(f"{where}: tensors without elements: {_listing(empty)}; download it again")
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


def _require_whole_groups(checkpoint: Checkpoint) -> None:
    for path, (_, columns) in layout.weight_shapes(checkpoint.config, checkpoint.architecture):
        own = checkpoint.settings(path)
        if own is not None and columns % own.group_size:
            raise CheckpointError(
                f"{checkpoint.directory}: {path} has {columns} columns, which groups of {own.group_size} do not "
                "divide; convert it again"
            )


def _allowed_dtypes(name: str, settings: ModuleSettings) -> tuple[str, ...]:
    path, _, suffix = name.rpartition(".")
    own = settings(path)
    integers = None if own is None else own.integer_dtype(suffix)
    return tuple(FLOAT_DTYPES) if integers is None else (integers,)


def _is_head(name: str) -> bool:
    return name.startswith(HEAD_PREFIXES)


def _is_layer_from(first: int, name: str) -> bool:
    found = _LAYER.match(name)
    return found is not None and int(found[1]) >= first


def _base_name(name: str) -> str:
    """Return what a head's tensor is called unquantized."""
    path, _, suffix = name.rpartition(".")
    return f"{path}.weight" if suffix in ("scales", "biases") else name


def _listing(items: list[str]) -> str:
    """Name the first of `items`, as many as make a line that can be read, and how many there are beside them."""
    named = [one_line(item, 150) for item in items[:9]]
    while len(named) > 1 and sum(map(len, named)) > 500:
        named.pop()
    rest = len(items) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest else "")
