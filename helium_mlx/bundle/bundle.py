"""A bundle: a model as a folder that a program without Python can run, and what its `manifest.json` says.

    manifest.json         everything below, and the SHA-256 of every other file
    functions/*.mlxfn     the forward pass at a few lengths and sizes of cache (see `functions.py`)
    weights.safetensors   what all functions take as their last inputs, once
    tokenizer.model       and `tokenizer.json`, where that is followed (see `tokenizer.py`)
    vectors.json          prompts and what comes of them, for a host to check itself (see `vectors.py`)

A function file names the backend that it was made on, and MLX promises to read it in the version that wrote it only:
a bundle is refused on another backend, and under another version than major.minor of the one it was made with. A
function file is a program: the hashes tell damage, not malice, so open bundles only of people you trust.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import cast

import mlx.core as mx

from helium_mlx import backend
from helium_mlx.bundle.functions import FunctionShape
from helium_mlx.bundle.manifest import (
    BUNDLE_FILE,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST_FILE,
    SAMPLING_OPTIONS,
    VECTORS_FILE,
    WEIGHTS_FILE,
    ArraySpec,
    Manifest,
    ModelFacts,
    function_file,
)
from helium_mlx.bundle.tokenizer import BundleTokenizer, TokenizerRecipe
from helium_mlx.checkpoint.config import DTYPES
from helium_mlx.errors import BundleError, CheckpointError, TokenizerError, shown
from helium_mlx.files.hashes import file_hashes
from helium_mlx.files.safetensors_header import read_header
from helium_mlx.files.safetensors_writer import DTYPE_NAMES
from helium_mlx.files.untrusted import FileProblem, open_file, read_json_object
from helium_mlx.option_values import real

# Of MLX's dtypes, those that a bundle's arrays can have, and their names in safetensors files.
_DTYPES = {backend.dtype_name(dtype): name for dtype, name in DTYPE_NAMES.items()}
_MAX_CONTEXT = 2**20
_MAX_LAYERS = 1000


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest, files and tensors have been checked. No function has been read."""

    directory: Path
    manifest: Manifest

    def tokenizer(self) -> BundleTokenizer:
        """Return its tokenizer."""
        path = self.directory / "tokenizer.model"
        try:
            return BundleTokenizer(path, self.manifest.tokenizer, self.manifest.bos_token_id)
        except (OSError, RuntimeError) as error:
            raise BundleError(f"{path}: not a SentencePiece model ({error}); export the bundle anew") from None

    def load_weights(self) -> list[mx.array]:
        """Return the weights in the order of the functions' inputs, read from disk."""
        tensors = cast("dict[str, mx.array]", mx.load(str(self.directory / WEIGHTS_FILE)))
        weights = [tensors[spec.name] for spec in self.manifest.weights]
        mx.eval(weights)
        return weights


def open_bundle(path: str | Path, *, check_hashes: bool = True) -> Bundle:
    """Check a bundle and return what it holds. Without `check_hashes`, files are compared by their sizes only.

    Raises BundleError, one line that says what is wrong and what to do.
    """
    directory = Path(path)
    where = directory / MANIFEST_FILE
    if not directory.is_dir():
        raise BundleError(f"{directory}: no such directory; give a bundle that `helium-mlx export` made")
    try:
        values = read_json_object(where)
    except FileProblem as problem:
        raise BundleError(f"{where}: {problem}") from None
    _check_format(values, where)
    _check_origin(values, where)
    try:
        manifest = _manifest_of(values, where)
    except TokenizerError as error:
        raise BundleError(f"{where}: {error}") from None
    files = _files_of(values, where)
    required = {WEIGHTS_FILE, VECTORS_FILE, "tokenizer.model", manifest.tokenizer.follows}
    missing = sorted((required | set(map(function_file, manifest.functions))) - set(files))
    if missing:
        raise _damaged(where, f"has no size and hash of {missing[0]}")
    for name, (size, sha256) in files.items():
        _check_file(directory / name, size, sha256 if check_hashes else None)
    _check_weights(directory / WEIGHTS_FILE, manifest)
    return Bundle(directory, manifest)


def _check_format(values: Mapping[str, object], where: Path) -> None:
    if values.get("format") != FORMAT:
        raise BundleError(
            f"{where}: format is {shown(values.get('format'))}; expected {FORMAT!r}: give a bundle that "
            "`helium-mlx export` made"
        )
    if values.get("format_version") != FORMAT_VERSION or isinstance(values.get("format_version"), bool):
        raise BundleError(
            f"{where}: format_version is {shown(values.get('format_version'))}; this program reads {FORMAT_VERSION}: "
            "export the bundle anew"
        )


def _check_origin(values: Mapping[str, object], where: Path) -> None:
    made_on, device = values.get("backend"), backend.name()
    if made_on != device:
        raise BundleError(
            f"{where}: the bundle was made on {shown(made_on)}, and MLX computes on {device!r} here; functions run "
            "where they were made: export it on this machine"
        )
    versions, here = values.get("versions"), version("mlx")
    made_with = versions.get("mlx") if isinstance(versions, dict) else None
    if not isinstance(made_with, str) or _minor(made_with) != _minor(here):
        raise BundleError(
            f"{where}: the bundle was made with MLX {shown(made_with)}, and this is {here}; function files are "
            "good for one minor version: export it anew, or install that MLX"
        )


def _minor(mlx_version: str) -> list[str]:
    return mlx_version.split(".")[:2]


def _manifest_of(values: Mapping[str, object], where: Path) -> Manifest:
    match values:
        case {
            "backend": str(made_on),
            "versions": {"mlx": str(mlx_version), "helium_mlx": str(helium_version)},
            "model": dict(model),
            "context": int(context),
            "tokenizer": dict(tokenizer),
            "bos_token_id": int(bos),
            "eos_token_ids": list(eos),
            "reserved_ids": list(reserved),
            "sampling": dict(sampling),
            "weights": dict(weights),
            "functions": list(functions),
        } if 0 < context <= _MAX_CONTEXT:
            facts = _model_of(model, where)
            ids = [bos, *eos, *reserved]
            if not all(_is_size(index) and cast(int, index) < facts.vocab_size for index in ids):
                raise _damaged(where, f"has special ids that are not all from 0 to {facts.vocab_size - 1}")
            if any(not _is_number(sampling.get(name)) for name in SAMPLING_OPTIONS):
                raise _damaged(where, f"has no number for each of {', '.join(SAMPLING_OPTIONS)} as sampling")
            return Manifest(
                backend=made_on,
                mlx_version=mlx_version,
                helium_version=helium_version,
                model=facts,
                context=context,
                tokenizer=TokenizerRecipe.from_dict(cast("dict[str, object]", tokenizer)),
                bos_token_id=bos,
                eos_token_ids=tuple(cast("list[int]", eos)),
                reserved_ids=tuple(cast("list[int]", reserved)),
                sampling=cast("dict[str, object]", sampling),
                weights=_weights_of(cast("dict[str, object]", weights), where),
                functions=_functions_of(functions, facts, context, where),
            )
    raise _damaged(where, "lacks one of its fields, or has one of another kind")


def _model_of(model: Mapping[str, object], where: Path) -> ModelFacts:
    match model:
        case {
            "model_type": str(model_type),
            "vocab_size": int(vocab_size),
            "num_hidden_layers": int(layers),
            "num_attention_heads": int(query_heads),
            "num_key_value_heads": int(heads),
            "head_dim": int(head_dim),
            "dtype": str(dtype),
            "bits_per_weight": int() | float() as bits,
        } if (
            min(vocab_size, layers, query_heads, heads, head_dim) > 0
            and query_heads % heads == 0
            and layers <= _MAX_LAYERS
            and dtype in DTYPES
            and _is_number(bits)
        ):
            return ModelFacts(model_type, vocab_size, layers, query_heads, heads, head_dim, dtype, bits)
    raise _damaged(where, "has a malformed model")


def _weights_of(weights: Mapping[str, object], where: Path) -> tuple[ArraySpec, ...]:
    match weights:
        case {"files": [name], "inputs": list(names), "shapes": list(shapes), "dtypes": list(dtypes)} if (
            name == WEIGHTS_FILE and len(names) == len(shapes) == len(dtypes) == len(set(map(str, names)))
        ):
            return tuple(
                _array(entry, shape, dtype, where) for entry, shape, dtype in zip(names, shapes, dtypes, strict=True)
            )
    raise _damaged(where, "has malformed weights")


def _array(name: object, shape: object, dtype: object, where: Path) -> ArraySpec:
    match name, shape, dtype:
        case str(), list(), str() if all(map(_is_size, shape)) and dtype in _DTYPES:
            return ArraySpec(name, tuple(shape), dtype)
    raise _damaged(where, f"has a malformed weight {shown(name)}")


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: object) -> bool:
    number = real(value)
    return number is not None and number >= 0


def _functions_of(
    functions: Sequence[object], facts: ModelFacts, context: int, where: Path
) -> tuple[FunctionShape, ...]:
    shapes = tuple(_function(entry, facts, where) for entry in functions)
    capacities = {shape.capacity for shape in shapes}
    whole = [shape.capacity for shape in shapes if shape.length == 1 and shape.attended == shape.capacity]
    if len(set(shapes)) != len(shapes) or sorted(whole) != sorted(capacities):
        raise _damaged(where, "has not one function for decoding over the whole of each capacity")
    if max(capacities, default=0) != context:
        raise _damaged(where, f"has no function for its context of {context}")
    return shapes


def _function(entry: object, facts: ModelFacts, where: Path) -> FunctionShape:
    match entry:
        case {"length": int(length), "capacity": int(capacity), "attended": int(attended)} if (
            0 < length <= attended <= capacity <= _MAX_CONTEXT
        ):
            shape = FunctionShape(length, capacity, attended)
            if facts.function_entry(shape) == entry:
                return shape
    name = entry.get("name") if isinstance(entry, dict) else entry
    raise _damaged(where, f"has a function {shown(name)} whose inputs or outputs do not fit the model")


def _files_of(values: Mapping[str, object], where: Path) -> dict[str, tuple[int, str]]:
    files = values.get("files")
    if not isinstance(files, dict):
        raise _damaged(where, "has no files")
    found: dict[str, tuple[int, str]] = {}
    for name, entry in files.items():
        match entry:
            case {"bytes": int(size), "sha256": str(sha256)} if BUNDLE_FILE.fullmatch(name):
                found[name] = (size, sha256)
            case _:
                raise _damaged(where, f"has the file {shown(name)}, which no bundle has, or no size and hash of it")
    return found


def _check_file(path: Path, size: int, sha256: str | None) -> None:
    try:
        with open_file(path) as file:
            found = file.seek(0, 2)
    except FileProblem as problem:
        raise BundleError(f"{path}: {problem}") from None
    if found != size:
        raise BundleError(f"{path}: has {found} bytes, and the manifest says {size}; copy the bundle again")
    if sha256 is not None and _sha256(path) != sha256:
        raise BundleError(f"{path}: does not have the SHA-256 that the manifest says; copy the bundle again")


def _sha256(path: Path) -> str:
    try:
        return file_hashes([path])[path.name]
    except CheckpointError as error:
        raise BundleError(str(error)) from None


def _check_weights(path: Path, manifest: Manifest) -> None:
    try:
        header = read_header(path)
    except CheckpointError as error:
        raise BundleError(str(error)) from None
    found = {name: (info.shape, info.dtype) for name, info in header.items()}
    said = {spec.name: (spec.shape, _DTYPES[spec.dtype]) for spec in manifest.weights}
    if found != said:
        name = min(name for name in {*found, *said} if found.get(name) != said.get(name))
        raise BundleError(
            f"{path}: tensor {shown(name)} is {shown(found.get(name))}, and the manifest says {shown(said.get(name))}; "
            "copy the bundle again"
        )


def _damaged(where: Path, what: str) -> BundleError:
    return BundleError(f"{where}: {what}; copy the bundle again, or export it anew")
