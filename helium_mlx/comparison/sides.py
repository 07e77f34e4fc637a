"""The two sides of a comparison: a checkpoint that this package opens, or one that mlx-lm does (`mlx-lm:NAME`).

Opening a side reads its tokenizer and the headers of its weights; its model is loaded later, and let go before the
other's. Both give logits of rows of ids, a few positions at a time, and know nothing of texts and windows.

mlx-lm is not a dependency of this package (`pip install mlx-lm`), and is imported only for a side that it opens. No
code of a checkpoint is run: a config that names some is refused.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn

from helium_mlx import backend
from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.checkpoint import Checkpoint, as_parameter, open_checkpoint, read_tensors
from helium_mlx.checkpoint.config import DTYPES
from helium_mlx.checkpoint.quantization_settings import QuantizationSettings, unquantized
from helium_mlx.comparison.figures import ComparedModel
from helium_mlx.errors import CheckpointError, ComparisonError, ConfigError, one_line
from helium_mlx.files.hub import resolve
from helium_mlx.files.names import CONFIG_FILE
from helium_mlx.files.safetensors_header import FLOAT_DTYPES, TensorInfo, read_header
from helium_mlx.files.untrusted import FileProblem, read_json_object
from helium_mlx.generation.scoring import HEAD_POSITIONS
from helium_mlx.kv_cache.memory import shown_bytes, working_set_bytes
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.loading import load_model
from helium_mlx.option_values import whole
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

MLX_LM_PREFIX = "mlx-lm:"

# As many bars as can be told apart, and as many passes as anybody waits for.
MAX_LAYER_GROUPS = 8

IsTaken = Callable[[str], bool]
"""Says for a tensor's or module's name in a causal LM whether it comes from the candidate."""


LogitsOfRows = Callable[[mx.array, Sequence[int]], Iterator[mx.array]]
"""From ids (B, L) and each row's length to the logits (n, vocab_size) of the first so many positions of each row.

They come row after row, `HEAD_POSITIONS` or fewer at a time, in the dtype that the model gives them.
"""


WeightFiles = Mapping[Path, Mapping[str, TensorInfo]]
"""Weight files, and of each the tensors that count, by name."""


class Loadable(Protocol):
    """A model that is not loaded yet. `bos` begins each window; `files` has the tensors that it is made of."""

    name: str
    bos: int
    files: WeightFiles

    def load(self, dtype: mx.Dtype) -> LogitsOfRows:
        """Return the model, loaded, computing in `dtype`."""
        ...


class Side(Loadable, Protocol):
    """What a comparison asks of either side.

    `context`, in tokens, and `vocab_size` are None where the model does not say. `dtype` is what it computes in by
    itself.
    """

    context: int | None
    vocab_size: int | None
    dtype: mx.Dtype

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS."""
        ...

    def described(self, dtype: mx.Dtype) -> ComparedModel:
        """Return what a report says of it; after `load`."""
        ...


def open_side(name: str, *, revision: str | None = None, subfolder: str | None = None) -> Side:
    """Open a directory, a Hub repository or "demo", or after "mlx-lm:" what mlx-lm can open.

    Raises CheckpointError, ConfigError, QuantizationError, TokenizerError or ComparisonError, one line.
    """
    if name.startswith(MLX_LM_PREFIX):
        bare = name.removeprefix(MLX_LM_PREFIX)
        return MlxLmSide(name, resolve(bare, revision=revision, subfolder=subfolder))
    directory = resolve(name, revision=revision, subfolder=subfolder)
    try:
        return HeliumSide(name, directory)
    except ConfigError as error:
        raise ConfigError(f"{error}; what mlx-lm can open is compared as {MLX_LM_PREFIX}{name}") from None


def require_fits(side: Side, dtype: mx.Dtype) -> None:
    """Raise ComparisonError unless the weights of a side, in `dtype`, fit into what the device recommends."""
    limit, needed = working_set_bytes(), _bytes_in_memory(side, dtype)
    if limit is None or needed <= limit:
        return
    shorter = [name for name in DTYPES if _bytes_in_memory(side, getattr(mx, name)) <= limit]
    remedy = f"give dtype {' or '.join(shorter)}, or take" if shorter else "take"
    raise ComparisonError(
        f"{side.name}: weights of {shown_bytes(needed)} in {backend.dtype_name(dtype)} are over the "
        f"{shown_bytes(limit)} that this device recommends; {remedy} a smaller or quantized model"
    )


def _bytes_in_memory(side: Side, dtype: mx.Dtype) -> int:
    infos = [info for tensors in side.files.values() for info in tensors.values()]
    return sum(
        math.prod(info.shape) * dtype.size if info.dtype in FLOAT_DTYPES else info.end - info.start for info in infos
    )


class HeliumSide:
    """A checkpoint of this package."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name, self.directory = name, directory
        self.checkpoint = open_checkpoint(directory)
        self.files: WeightFiles = {
            path: {tensor: info for tensor, info in infos.items() if not self.checkpoint.is_ignored(tensor)}
            for path, infos in self.checkpoint.files.items()
        }
        self.tokenizer = HeliumTokenizer.from_pretrained(directory)
        self.bos = self.tokenizer.bos_token_id
        self.context: int | None = self.checkpoint.config.max_position_embeddings
        self.vocab_size: int | None = self.checkpoint.config.vocab_size
        stored = getattr(mx, self.checkpoint.dtype)
        self.dtype = backend.compute_dtype(stored, quantized=self.checkpoint.is_quantized)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def load(self, dtype: mx.Dtype) -> LogitsOfRows:
        """Return the model, loaded, computing in `dtype`."""
        return logits_of_helium(load_model(self.checkpoint, dtype=dtype))

    def described(self, dtype: mx.Dtype) -> ComparedModel:
        """Return what a report says of it."""
        infos = self.checkpoint.tensors.values()
        return _described(self.name, "helium_mlx", dtype, infos, parameter_count(self.checkpoint))


class Hybrid:
    """The reference with some modules from the candidate; both are checkpoints of this package."""

    def __init__(self, reference: HeliumSide, candidate: HeliumSide, is_taken: IsTaken) -> None:
        self.name, self.bos = candidate.name, reference.bos
        self.files: WeightFiles = {**reference.files, **candidate.files}
        self._checkpoints, self._is_taken = (reference.checkpoint, candidate.checkpoint), is_taken

    def load(self, dtype: mx.Dtype) -> LogitsOfRows:
        """Return the model, loaded, computing in `dtype`."""
        return logits_of_helium(hybrid_model(*self._checkpoints, self._is_taken, dtype=dtype))


class MlxLmSide:
    """What mlx-lm opens, as it opens it: its model, its tokenizer."""

    def __init__(self, name: str, directory: Path) -> None:
        try:
            from mlx_lm.utils import load_tokenizer
        except ImportError as error:
            raise ComparisonError(f"{name} needs mlx-lm, which is not there ({error}): pip install mlx-lm") from None
        self.name, self.directory = name, directory
        try:
            config = read_json_object(directory / CONFIG_FILE)
        except FileProblem as problem:
            raise CheckpointError(f"{directory / CONFIG_FILE}: {problem}") from None
        if config.get("model_file"):
            raise CheckpointError(
                f"{directory}: its config.json names code (model_file); no code of a checkpoint is run"
            )
        self.files: WeightFiles = {path: read_header(path) for path in sorted(directory.glob("model*.safetensors"))}
        self._infos = [info for infos in self.files.values() for info in infos.values()]
        if not self._infos:
            raise CheckpointError(f"{directory}: no model*.safetensors is there, which is what mlx-lm reads")
        self._parameters = 0
        try:
            self.tokenizer = load_tokenizer(directory, {"trust_remote_code": False})
        except (OSError, TypeError, ValueError, KeyError, AttributeError, ImportError) as error:
            raise _refused(name, "the tokenizer", error) from None
        self.config = config
        self.bos = self._first_id(config)
        self.context = _positive(config.get("max_position_embeddings"))
        self.vocab_size = _positive(config.get("vocab_size"))
        found = [FLOAT_DTYPES[info.dtype] for info in self._infos if info.dtype in FLOAT_DTYPES]
        stored = getattr(mx, max(DTYPES, key=found.count))
        is_quantized = any(info.dtype == "U32" for info in self._infos)
        self.dtype = backend.compute_dtype(stored, quantized=is_quantized)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def load(self, dtype: mx.Dtype) -> LogitsOfRows:
        """Return the model, loaded, computing in `dtype`."""
        return logits_of_any(self.load_model(dtype))

    def require_loadable(self) -> None:
        """Raise ComparisonError for a model that mlx-lm does not know, or whose weights do not fit; none is read."""
        self._opened(lazy=True)

    def load_model(self, dtype: mx.Dtype) -> Callable[..., mx.array]:
        """Return mlx-lm's model itself, computing in `dtype`."""
        from mlx_lm.utils import get_total_parameters

        model = self._opened(lazy=False)
        model.set_dtype(dtype)
        mx.eval(model.parameters())
        self._parameters = get_total_parameters(model)
        return model

    def described(self, dtype: mx.Dtype) -> ComparedModel:
        """Return what a report says of it."""
        return _described(self.name, "mlx-lm", dtype, self._infos, self._parameters)

    def _opened(self, *, lazy: bool) -> nn.Module:
        from mlx_lm.utils import load_model

        try:
            return load_model(self.directory, lazy=lazy)[0]
        except (OSError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise _refused(self.name, "the model", error) from None

    def _first_id(self, config: dict[str, object]) -> int:
        """Return what a window begins with: what the tokenizer puts before a text, else BOS, else EOS."""
        prefix = self.tokenizer.encode("", add_special_tokens=True)
        candidates = [
            *prefix[:1],
            self.tokenizer.bos_token_id,
            config.get("bos_token_id"),
            self.tokenizer.eos_token_id,
        ]
        found = [index for index in map(whole, candidates) if index is not None]
        if not found:
            raise ComparisonError(f"{self.name}: its tokenizer has neither BOS nor EOS for a window to begin with")
        return found[0]


def logits_of_helium(model: HeliumForCausalLM) -> LogitsOfRows:
    """Return what gives the logits of a model of this package: its head sees no padding."""

    def logits(ids: mx.array, lengths: Sequence[int]) -> Iterator[mx.array]:
        h = model.model.run(model.model.embed(ids), None).last_hidden_state
        yield from map(model.logits, _chunks(h, lengths))

    return logits


def logits_of_any(model: Callable[[mx.array], mx.array]) -> LogitsOfRows:
    """Return what gives the logits of a model that computes all positions at once, as mlx-lm's do."""

    def logits(ids: mx.array, lengths: Sequence[int]) -> Iterator[mx.array]:
        yield from _chunks(model(ids), lengths)

    return logits


def parameter_count(checkpoint: Checkpoint) -> int:
    """Return the number of a checkpoint's weights, unpacked."""
    shapes = layout.tensor_shapes(checkpoint.config, unquantized, checkpoint.architecture)
    return sum(math.prod(shape) for _, shape in shapes)


def _positive(value: object) -> int | None:
    number = whole(value)
    return number if number is not None and number > 0 else None


def _chunks(x: mx.array, lengths: Sequence[int]) -> Iterator[mx.array]:
    """Cut (B, L, D) into (n, D), its rows at their lengths, one after another."""
    whole = mx.concatenate([row[:length] for row, length in zip(x, lengths, strict=True)])
    mx.eval(whole)
    for first in range(0, whole.shape[0], HEAD_POSITIONS):
        yield whole[first : first + HEAD_POSITIONS]


def _described(name: str, program: str, dtype: mx.Dtype, infos: Iterable[TensorInfo], parameters: int) -> ComparedModel:
    weight_bytes = sum(info.end - info.start for info in infos)
    bits = 8 * weight_bytes / parameters
    return ComparedModel(name, program, backend.dtype_name(dtype), weight_bytes, bits)


def _refused(name: str, what: str, error: Exception) -> ComparisonError:
    return ComparisonError(f"{name}: mlx-lm cannot open {what} ({one_line(str(error) or type(error).__name__)})")


"""Says for a tensor's or module's name in a causal LM whether it comes from the candidate."""


def layer_groups(checkpoint: Checkpoint) -> dict[str, IsTaken]:
    """Return groups of modules by name, which together are the whole model: embedding, runs of layers, head.

    The final norm goes with the head, or with the embedding where that is the head.
    """
    config = checkpoint.config
    n_layers, is_tied = config.num_hidden_layers, config.tie_word_embeddings
    count = min(n_layers, MAX_LAYER_GROUPS)
    edges = [n_layers * index // count for index in range(count + 1)]
    outside = "model.embed_tokens", "model.norm", "lm_head"
    groups = {"embedding and head": _below(*outside)} if is_tied else {"embedding": _below(outside[0])}
    for first, end in pairwise(edges):
        name = f"layer {first}" if end == first + 1 else f"layers {first} to {end - 1}"
        groups[name] = _below(*map(layout.layer_prefix, range(first, end)))
    return groups if is_tied else groups | {"head": _below(*outside[1:])}


def hybrid_model(
    reference: Checkpoint, candidate: Checkpoint, is_taken: IsTaken, *, dtype: mx.Dtype
) -> HeliumForCausalLM:
    """Return the reference's causal LM, computing in `dtype`, with what `is_taken` names from the candidate.

    Raises ComparisonError if the two are not of one architecture.
    """
    require_same_shape(reference, candidate)
    config = reference.config

    def settings(path: str) -> QuantizationSettings | None:
        return (candidate if is_taken(path) else reference).settings(path)

    model = HeliumForCausalLM(config, settings)
    tensors = {name: tensor for name, tensor in read_tensors(reference).items() if not is_taken(name)}
    tensors |= {name: tensor for name, tensor in read_tensors(candidate).items() if is_taken(name)}
    weights = {name: as_parameter(name, tensor, dtype, config) for name, tensor in tensors.items()}
    model.load_weights(list(layout.merge_projections(weights, config, settings).items()))
    del tensors, weights
    # One layer at a time, as `load_model` does it.
    for layer in model.model.layers:
        mx.eval(layer.parameters())
    mx.eval(model.parameters())
    model.eval()
    return model


def require_same_shape(reference: Checkpoint, candidate: Checkpoint) -> None:
    """Raise ComparisonError unless modules of the one fit into the other."""
    shapes = [dict(layout.tensor_shapes(each.config, unquantized)) for each in (reference, candidate)]
    families = {each.config.model_type for each in (reference, candidate)}
    if shapes[0] != shapes[1] or len(families) > 1:
        raise ComparisonError(
            f"{candidate.directory} is not of the shape of {reference.directory}, so its layers cannot be put in there"
        )


def _below(*paths: str) -> IsTaken:
    return lambda name: any(name == path or name.startswith(f"{path}.") for path in paths)
