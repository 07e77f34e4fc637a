"""From a model in memory to a checkpoint directory that transformers opens, or the Hub; and from a directory back."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, TypeVar, cast

import mlx.core as mx
import mlx.nn as nn

from helium_mlx import backend
from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.checkpoint import Checkpoint, as_parameter, compute_dtype, open_checkpoint, read_tensors
from helium_mlx.checkpoint.config import DTYPES, HeliumConfig
from helium_mlx.checkpoint.generation_config import GenerationConfig
from helium_mlx.checkpoint.layout import BODY_PREFIX, architecture_name
from helium_mlx.checkpoint.quantization_settings import ModuleSettings, QuantizationSettings, config_entry
from helium_mlx.checkpoint.weight_files import write_weights
from helium_mlx.errors import CheckpointError, some
from helium_mlx.files.atomic import files_into, write_json
from helium_mlx.files.local_paths import published
from helium_mlx.files.names import CONFIG_FILE, GENERATION_CONFIG_FILE
from helium_mlx.model.interfaces import PretrainedModel
from helium_mlx.process import require_not_forked

Model = TypeVar("Model", bound=PretrainedModel)


class LoadingInfo(TypedDict):
    """What transformers' `output_loading_info` tells of tensors: those initialised, those left out, and other shapes.

    A name of the third kind comes with the shape on disk and the model's. `error_msgs` is empty: errors are raised.
    """

    missing_keys: set[str]
    unexpected_keys: set[str]
    mismatched_keys: set[tuple[str, tuple[int, ...], tuple[int, ...]]]
    error_msgs: list[str]


# What of MLX's a model is made of, before and after `nn.quantize`; the rest is this package's.
_MLX_MODULES = (nn.Linear, nn.QuantizedLinear, nn.Embedding, nn.QuantizedEmbedding, nn.RMSNorm, nn.Dropout)


def save_model(model: PretrainedModel, directory: Path, *, max_shard_bytes: int | None = None) -> None:
    """Write a model's config and weights into `directory`; see `HeliumPreTrainedModel.save_pretrained`."""
    require_not_forked("save the model there")
    settings = settings_in_memory(model)
    _require_readable(model, settings)
    _require_own_modules(model)
    tensors = tensors_on_disk(model)
    dtypes = [backend.dtype_name(tensor.dtype) for tensor in tensors.values()]
    paths = [path for path, _ in layout.weight_shapes(model.config, model.architecture)]
    quantized = any(settings(path) is not None for path in paths)
    config = replace(model.config, quantization=config_entry(settings, paths) if quantized else None).to_dict()
    config["architectures"] = [architecture_name(model.config, model.architecture)]
    config["dtype"] = max(DTYPES, key=dtypes.count)
    plans = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    with files_into(directory) as written:
        write_json(written / CONFIG_FILE, published(config, directory))
        if model.can_generate():
            write_json(written / GENERATION_CONFIG_FILE, published(model.generation_config.to_dict(), directory))
        write_weights(written, plans, iter(tensors.items()), max_shard_bytes=max_shard_bytes)


def settings_in_memory(model: PretrainedModel) -> ModuleSettings:
    """Return how the modules of a model are quantized, by their paths on disk in a causal LM."""
    prefix = BODY_PREFIX if model.architecture == "Model" else ""
    found: dict[str, QuantizationSettings] = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
            settings = QuantizationSettings(module.group_size, module.bits, module.mode)
            found |= dict.fromkeys(layout.parts_of(prefix + path), settings)
    return found.get


def _require_readable(model: PretrainedModel, settings: ModuleSettings) -> None:
    """Raise CheckpointError unless the tensors are those that a reader of the model's config looks for."""
    with_lora = [path for path, module in model.named_modules() if "lora_a" in module]
    if with_lora:
        raise CheckpointError(
            f"the model has LoRA layers ({some(with_lora)}), which no reader of its config looks for; fuse them first: "
            "model.update_modules(mlx.utils.tree_unflatten([(path, layer.fuse()) for path, layer in "
            "model.named_modules() if hasattr(layer, 'fuse')]))"
        )
    prefix = BODY_PREFIX if model.architecture == "Model" else ""
    found = {prefix + name: tensor.shape for name, tensor in tensors_on_disk(model).items()}
    expected = dict(layout.tensor_shapes(model.config, settings, model.architecture))
    strange = [name for name in found if name not in expected]
    if any(name == "score.scales" for name in strange):
        raise CheckpointError(
            "the head `score` is quantized, which no reader expects; leave it out: "
            "nn.quantize(model.model, group_size, bits)"
        )
    wrong = [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    missing = [name for name in expected if name not in found]
    if strange or missing or wrong:
        said = [
            f"{some(names)} {what}" for names, what in ((strange, "has no place"), (missing, "is missing")) if names
        ]
        raise CheckpointError(
            f"the model does not fit its config: {'; '.join([*said, *wrong[:3]])}; change the config with the model"
        )


def _require_own_modules(model: PretrainedModel) -> None:
    """Raise CheckpointError for a module that has the parameters of a model's own, and another function."""
    eps = model.config.rms_norm_eps
    for path, module in model.named_modules():
        kind = type(module)
        # The whole may be of a class that the user derived.
        if path and kind not in _MLX_MODULES and not kind.__module__.startswith("helium_mlx."):
            raise CheckpointError(
                f"{path} is a {kind.__name__}; what reads its config computes otherwise: put an own module with its "
                "weights there, such as nn.Linear or nn.RMSNorm"
            )
        if kind is nn.RMSNorm and cast(nn.RMSNorm, module).eps != eps:
            raise CheckpointError(
                f"{path} has eps {cast(nn.RMSNorm, module).eps}, and the config rms_norm_eps {eps}, which a reader "
                "takes; set both to the same"
            )


def push_model(
    model: PretrainedModel, repo_id: str, *, private: bool | None = None, commit_message: str | None = None
) -> str:
    """Upload what `save_model` writes; see `HeliumPreTrainedModel.push_to_hub`."""
    from helium_mlx.files.hub_push import push

    return push(
        lambda directory: save_model(model, directory),
        repo_id,
        private=private,
        commit_message=commit_message,
        what="a Helium model",
    )


def tensors_on_disk(model: PretrainedModel) -> dict[str, mx.array]:
    """Return a model's tensors under transformers' names: projections split, a bare decoder without its `model.`."""
    tensors = _tensors_in_causal_lm(model)
    if model.architecture == "Model":
        tensors = {name.removeprefix(layout.BODY_PREFIX): tensor for name, tensor in tensors.items()}
    return tensors


def _tensors_in_causal_lm(model: PretrainedModel) -> dict[str, mx.array]:
    tensors = model.tensors()
    if model.architecture == "Model":
        tensors = {layout.BODY_PREFIX + name: tensor for name, tensor in tensors.items()}
    return layout.split_projections(tensors, model.config)


def load_pretrained(
    model_class: type[Model],
    directory: str | Path,
    *,
    dtype: str | mx.Dtype | None = None,
    config: HeliumConfig | None = None,
    config_values: Mapping[str, object] | None = None,
    ignore_mismatched_sizes: bool = False,
) -> tuple[Model, LoadingInfo]:
    """Return a model of any class, with a warning that names what had to be initialised or was left out."""
    checkpoint = open_checkpoint(
        directory,
        architecture=model_class.architecture,
        any_head=True,
        config=config,
        config_values=config_values,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )
    said = list(checkpoint.warnings)
    if checkpoint.missing:
        said.append(f"{', '.join(checkpoint.missing)} not there, so initialised: train it before use")
    if checkpoint.mismatched:
        shapes = [f"{name} is {list(found)}, not {list(expected)}" for name, found, expected in checkpoint.mismatched]
        said.append(f"{some(shapes)}, so initialised: train it before use")
    if checkpoint.left_out:
        said.append(
            f"{some(checkpoint.left_out)} left out, since the {model_class.__name__} asked for has no such tensor"
        )
    if said:
        warnings.warn(f"{checkpoint.directory}: {'; '.join(said)}", stacklevel=3)
    return build_model(model_class, checkpoint, dtype), _loading_info(checkpoint)


def _loading_info(checkpoint: Checkpoint) -> LoadingInfo:
    return {
        "missing_keys": set(checkpoint.missing),
        "unexpected_keys": set(checkpoint.left_out),
        "mismatched_keys": {(name, found, expected) for name, found, expected in checkpoint.mismatched},
        "error_msgs": [],
    }


def build_model(model_class: type[Model], checkpoint: Checkpoint, dtype: str | mx.Dtype | None) -> Model:
    """Return a model of the class with the checkpoint's weights, evaluated, in evaluation mode.

    Raises HeliumError after a fork.
    """
    require_not_forked("load the model there")
    config, target = checkpoint.config, compute_dtype(checkpoint, dtype)
    model = model_class(config, checkpoint.settings)  # pyright: ignore[reportCallIssue]
    if model.can_generate():
        model.generation_config = GenerationConfig.of_directory(checkpoint.directory, config)
    weights = read_tensors(checkpoint)
    if checkpoint.initialised:
        initial = _tensors_in_causal_lm(model)
        weights |= {name: initial[name] for name in checkpoint.initialised}
    weights = {name: as_parameter(name, tensor, target, config) for name, tensor in weights.items()}
    weights = layout.merge_projections(weights, config, checkpoint.settings)
    if model.architecture == "Model":
        weights = {name.removeprefix(BODY_PREFIX): tensor for name, tensor in weights.items()}
    model.load_weights(list(weights.items()))
    del weights
    for _, module in multiplying_modules(model):
        module.weight = backend.for_products(module.weight)
    # One layer at a time: the parts of a merged projection are let go before the next layer is read.
    for layer in model.body.layers:
        mx.eval(layer.parameters())
    mx.eval(model.parameters())
    model.eval()
    return model


def multiplying_modules(model: PretrainedModel) -> Iterator[tuple[str, nn.Linear | nn.Embedding]]:
    """Yield the names and the modules whose `weight` is a matrix to multiply by, not quantized."""
    kinds = (nn.Linear, nn.Embedding) if model.config.tie_word_embeddings else nn.Linear
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            yield name, cast("nn.Linear | nn.Embedding", module)
