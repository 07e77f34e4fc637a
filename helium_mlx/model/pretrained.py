"""What all models share: the part of transformers' `PreTrainedModel` that users call."""

import math
from pathlib import Path
from typing import ClassVar, Literal, TypeVar, cast, overload

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from helium_mlx.checkpoint.checkpoint import parse_dtype
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.checkpoint.generation_config import GenerationConfig
from helium_mlx.checkpoint.layout import Architecture
from helium_mlx.checkpoint.weight_files import parse_size
from helium_mlx.errors import ArgumentError, KeywordError, unknown_keyword
from helium_mlx.files.hub import resolve
from helium_mlx.model.activations import XIELU
from helium_mlx.model.generation_mixin import GenerationMixin
from helium_mlx.model.interfaces import Decoder
from helium_mlx.model.loading_options import loading_options
from helium_mlx.model.serialization import LoadingInfo, load_pretrained, push_model, save_model
from helium_mlx.option_values import require_whole

Model = TypeVar("Model", bound="HeliumPreTrainedModel")


class HeliumPreTrainedModel(nn.Module):
    """A Helium model of any kind: reading, writing, its embeddings and its size."""

    architecture: ClassVar[Architecture]
    # Only where `can_generate()`.
    generation_config: GenerationConfig

    def __init__(self, config: HeliumConfig) -> None:
        super().__init__()
        self.config = config

    @overload
    @classmethod
    def from_pretrained(
        cls: type[Model], path_or_repo: str | Path, *, output_loading_info: Literal[True], **options: object
    ) -> tuple[Model, LoadingInfo]: ...

    @overload
    @classmethod
    def from_pretrained(
        cls: type[Model],
        path_or_repo: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        dtype: object = None,
        config: HeliumConfig | str | Path | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: Literal[False] = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        device_map: object = None,
        attn_implementation: str | None = None,
        **config_values: object,
    ) -> Model: ...

    @classmethod
    def from_pretrained(
        cls: type[Model], path_or_repo: str | Path, **options: object
    ) -> Model | tuple[Model, LoadingInfo]:
        """Return the model of a checkpoint directory, a Hub repository, or "demo", in evaluation mode.

        `subfolder` is the folder of the repository or directory that holds it. `dtype` (or `torch_dtype`) is a name, or
        a dtype of MLX or torch; None and "auto" are the checkpoint's own. `config` stands in for the checkpoint's, and
        names that are no option replace a value of it: `num_labels=6`; with `num_hidden_layers=1` no further layer is
        read. `token`, `cache_dir`, `local_files_only` and `force_download` say how the Hub is asked. `device_map` and
        `attn_implementation` are taken where they change nothing, and so are transformers' other options
        (`loading_options.py` has the lists).

        A head that the checkpoint lacks is initialised, and heads of other kinds are left out; with
        `ignore_mismatched_sizes`, tensors of another shape are initialised too. A warning names all of them, and with
        `output_loading_info` a second value does.

        Raises CheckpointError for anything else that is missing, extra or of another shape, and ArgumentError for
        options that ask for what is not done here.
        """
        chosen = loading_options(options)
        directory = resolve(path_or_repo, revision=chosen.revision, subfolder=chosen.subfolder, access=chosen.access)
        model, info = load_pretrained(
            cls,
            directory,
            dtype=chosen.dtype,
            config=chosen.config,
            config_values=chosen.config_values,
            ignore_mismatched_sizes=chosen.ignore_mismatched_sizes,
        )
        return (model, info) if chosen.output_loading_info else model

    @classmethod
    def from_config(cls: type[Model], config: HeliumConfig, *, dtype: object = None, **options: object) -> Model:
        """Return a model of a config, with random weights, in training mode.

        `dtype` is as in `from_pretrained`, None being the config's own, or float32; other options are taken where they
        change nothing. Raises ArgumentError for those that ask for what is not done here.
        """
        chosen = loading_options({"dtype": dtype, **options})
        for name in chosen.config_values:
            raise KeywordError(unknown_keyword("from_config", name, ("config", "dtype", "torch_dtype")))
        model = cls(config)
        model.set_dtype(parse_dtype(chosen.dtype) or parse_dtype(config.dtype) or mx.float32)
        return model

    @classmethod
    def can_generate(cls) -> bool:
        """Return whether the model has `generate`, and a `generation_config` for it."""
        return issubclass(cls, GenerationMixin)

    def save_pretrained(self, directory: str | Path, *, max_shard_size: int | str = "5GB") -> None:
        """Write `config.json` and the weights, files of at most `max_shard_size` (bytes, or text such as "5GB").

        Tensors keep their dtype. transformers reads the directory, unless the model is quantized, and so stays: this
        package and mlx-lm read it then. Raises CheckpointError, before anything is written, for a model with modules
        that no reader knows, such as LoRA layers that are not fused, or that compute something else than it would.
        """
        save_model(self, Path(directory), max_shard_bytes=parse_size(max_shard_size))

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, commit_message: str | None = None) -> str:
        """Upload what `save_pretrained` writes to a Hub repository, made if need be; return the commit's address.

        Raises UsageError for a name that no repository has, and UploadError, one line, if the Hub refuses.
        """
        return push_model(self, repo_id, private=private, commit_message=commit_message)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of tokens."""
        return self.body.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding of tokens; shape (vocab_size, hidden_size) as before.

        Raises ArgumentError for another shape: `resize_token_embeddings` is what changes the vocabulary.
        """
        expected = (self.config.vocab_size, self.config.hidden_size)
        if not isinstance(value, (nn.Embedding, nn.QuantizedEmbedding)) or _unpacked_shape(value) != expected:
            came = (
                _unpacked_shape(value) if isinstance(value, nn.Module) and "weight" in value else type(value).__name__
            )
            raise ArgumentError(f"value is {came}; expected an embedding of shape {expected}")
        self.body.embed_tokens = cast(nn.Embedding, value)

    def resize_token_embeddings(self, new_num_tokens: int) -> nn.Module:
        """Make the vocabulary `new_num_tokens` long, in the embedding, the head and the config; return the embedding.

        New rows are the mean of the old ones, as transformers' default has them but for noise of 1e-9.
        """
        new_num_tokens = require_whole("new_num_tokens", new_num_tokens, 1, error=ArgumentError)
        config = self.config
        special = [i for i in (*config.eos_token_ids, config.bos_token_id, config.pad_token_id) if i is not None]
        if new_num_tokens <= max(special, default=0):
            raise ArgumentError(
                f"new_num_tokens is {new_num_tokens}; expected more than {max(special)}, the largest special id"
            )
        resized = [self.get_input_embeddings(), *([self["lm_head"]] if "lm_head" in self else [])]
        if any("scales" in module for module in resized):
            raise ArgumentError("a quantized embedding cannot be resized; resize the full-precision model")
        for module in resized:
            module.weight = _resized(module.weight, new_num_tokens)
        for config in {id(c): c for c in (self.config, self.body.config)}.values():
            config.vocab_size = new_num_tokens
        return self.get_input_embeddings()

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Return the number of weights; packed ones are counted unpacked, without their scales."""
        return sum(_own_size(module, only_trainable) for _, module in self.named_modules())

    @property
    def device(self) -> mx.Device:
        """MLX's default device, which is where every model computes."""
        return mx.default_device()

    @property
    def body(self) -> Decoder:
        """The decoder, without a head."""
        return cast(Decoder, self.get("model", self))

    @property
    def dtype(self) -> mx.Dtype:
        """What the model computes in: the dtype of its norms, which are never quantized."""
        return self.body.norm.weight.dtype

    def tensors(self) -> dict[str, mx.array]:
        """Return every parameter by its name in memory, where projections are merged."""
        return cast(dict[str, mx.array], dict(tree_flatten(self.parameters())))


def _own_size(module: nn.Module, only_trainable: bool) -> int:
    arrays = {name: value for name, value in module.items() if isinstance(value, mx.array)}
    sizes = {name: math.prod(array.shape) for name, array in arrays.items()}
    if isinstance(module, XIELU):
        sizes = {name: size for name, size in sizes.items() if name not in XIELU.constants}
    if "scales" in sizes:
        sizes = {name: size for name, size in sizes.items() if name not in ("scales", "biases")}
        sizes["weight"] = math.prod(_unpacked_shape(module))
    return sum(size for name, size in sizes.items() if not (only_trainable and name in module._no_grad))


def _unpacked_shape(module: nn.Module) -> tuple[int, ...]:
    *rows, columns = cast(mx.array, module.weight).shape
    return (*rows, columns * 32 // cast(int, module.bits) if "scales" in module else columns)


def _resized(weight: mx.array, rows: int) -> mx.array:
    missing = rows - weight.shape[0]
    if missing <= 0:
        return weight[:rows]
    mean = weight.astype(mx.float32).mean(axis=0, keepdims=True).astype(weight.dtype)
    return mx.concatenate([weight, mx.repeat(mean, missing, axis=0)])
