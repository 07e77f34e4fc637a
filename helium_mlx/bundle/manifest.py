"""What a bundle's `manifest.json` says: where it was made, the model, the tokenizer, every function and every file.

Everything a host needs to know before it reads anything else. Inputs and outputs of a function follow from the model's
sizes; they are spelled out all the same, for hosts that would rather read than derive.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx

from helium_mlx.bundle.functions import CacheArrays, FunctionShape
from helium_mlx.bundle.tokenizer import TokenizerRecipe
from helium_mlx.files.hashes import file_hashes

FORMAT = "helium-bundle"
FORMAT_VERSION = 2
MANIFEST_FILE = "manifest.json"
VECTORS_FILE = "vectors.json"
WEIGHTS_FILE = "weights.safetensors"
FUNCTIONS_DIRECTORY = "functions"

# The options of `stream_generate` whose defaults a host is told.
SAMPLING_OPTIONS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens")

# What a bundle may hold: no name leads out of it, and --overwrite replaces nothing else.
BUNDLE_FILE = re.compile(r"functions/[a-z0-9_]+\.mlxfn|weights\.safetensors|vectors\.json|tokenizer\.(json|model)")


@dataclass(frozen=True)
class ArraySpec:
    """The name, shape and dtype (MLX's name) of an input or an output."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def zeros(self) -> mx.array:
        """Return an array of zeros as it is described."""
        return mx.zeros(self.shape, mx.bool_ if self.dtype == "bool" else getattr(mx, self.dtype))

    @property
    def values(self) -> dict[str, object]:
        """What stands in the manifest."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}


@dataclass(frozen=True)
class ModelFacts:
    """What a host must know of the model.

    `dtype` is that of caches and logits; `bits_per_weight` counts scales and biases.
    """

    model_type: str
    vocab_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    dtype: str
    bits_per_weight: float

    @property
    def positions(self) -> int:
        """How many positions a token's function takes: the groups of query heads, the keys and the values."""
        return self.num_attention_heads // self.num_key_value_heads + 2

    def caches(self, capacity: int) -> list[ArraySpec]:
        """Return the cache of every layer, for `capacity` tokens: keys, then values."""
        shape = (2, self.num_key_value_heads, capacity, self.head_dim)
        return [ArraySpec(f"cache_{layer}", shape, self.dtype) for layer in range(self.num_hidden_layers)]

    def empty_caches(self, capacity: int) -> CacheArrays:
        """Return caches without tokens. Zeros: what is masked must be finite all the same."""
        return [spec.zeros() for spec in self.caches(capacity)]

    def inputs(self, shape: FunctionShape) -> list[ArraySpec]:
        """Return the inputs of a function before the weights."""
        if shape.length == 1:
            where = [ArraySpec("positions", (self.positions,), "int32"), ArraySpec("seen", (shape.attended,), "bool")]
        else:
            where = [ArraySpec("offset", (1,), "int32"), ArraySpec("count", (1,), "int32")]
        return [ArraySpec("tokens", (shape.length,), "uint32"), *where, *self.caches(shape.capacity)]

    def outputs(self, shape: FunctionShape) -> list[ArraySpec]:
        """Return the outputs of a function."""
        return [ArraySpec("logits", (1, self.vocab_size), self.dtype), *self.caches(shape.capacity)]

    def function_entry(self, shape: FunctionShape) -> dict[str, object]:
        """Return what the manifest says of a function."""
        return {
            "name": shape.name,
            "file": function_file(shape),
            "kind": shape.kind,
            "length": shape.length,
            "capacity": shape.capacity,
            "attended": shape.attended,
            "inputs": [spec.values for spec in self.inputs(shape)],
            "outputs": [spec.values for spec in self.outputs(shape)],
        }


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`, hashes aside. `weights` come in the order in which functions take them."""

    backend: str
    mlx_version: str
    helium_version: str
    model: ModelFacts
    context: int
    tokenizer: TokenizerRecipe
    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    reserved_ids: tuple[int, ...]
    sampling: dict[str, object]
    weights: tuple[ArraySpec, ...]
    functions: tuple[FunctionShape, ...]

    def to_dict(self, files: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
        """Return what stands in the file; `files` gives size and hash of every other file of the bundle."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "backend": self.backend,
            "versions": {"mlx": self.mlx_version, "helium_mlx": self.helium_version},
            "model": asdict(self.model),
            "context": self.context,
            "tokenizer": self.tokenizer.to_dict(),
            "bos_token_id": self.bos_token_id,
            "eos_token_ids": list(self.eos_token_ids),
            "reserved_ids": list(self.reserved_ids),
            "sampling": self.sampling,
            "weights": {
                "files": [WEIGHTS_FILE],
                "inputs": [spec.name for spec in self.weights],
                "shapes": [list(spec.shape) for spec in self.weights],
                "dtypes": [spec.dtype for spec in self.weights],
            },
            "functions": [self.model.function_entry(shape) for shape in self.functions],
            "files": files,
        }

    @property
    def capacities(self) -> list[int]:
        """The sizes of cache that there are functions for, in ascending order."""
        return sorted({shape.capacity for shape in self.functions})


def function_file(shape: FunctionShape) -> str:
    """Return the path of a function's file within the bundle."""
    return f"{FUNCTIONS_DIRECTORY}/{shape.name}.mlxfn"


def bundle_files(directory: Path) -> Iterator[str]:
    """Yield the paths within a directory of all its files, in order, directories themselves left out."""
    for path in sorted(directory.rglob("*")):
        if not path.is_dir():
            yield path.relative_to(directory).as_posix()


def file_entries(directory: Path) -> dict[str, dict[str, object]]:
    """Return the size and the SHA-256 of every file of a bundle but the manifest."""
    paths = {name: directory / name for name in bundle_files(directory) if name != MANIFEST_FILE}
    return {
        name: {"bytes": path.stat().st_size, "sha256": file_hashes([path])[path.name]} for name, path in paths.items()
    }
