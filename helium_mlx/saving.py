"""From a model in memory to a checkpoint directory that transformers opens, and on to the Hub."""

import re
import tempfile
from pathlib import Path

import mlx.core as mx

from helium_mlx import layout
from helium_mlx.config import CONFIG_FILE, DTYPES, HeliumConfig
from helium_mlx.errors import ArgumentError, UploadError
from helium_mlx.generation_config import GENERATION_CONFIG_FILE
from helium_mlx.model import HeliumForCausalLM
from helium_mlx.pretrained import HeliumPreTrainedModel
from helium_mlx.weight_files import files_into, write_json, write_weights


def save_model(model: HeliumPreTrainedModel, directory: Path, *, max_shard_bytes: int | None = None) -> None:
    """Write a model's config and weights into `directory`; see `HeliumPreTrainedModel.save_pretrained`."""
    tensors = tensors_on_disk(model)
    dtypes = [str(tensor.dtype).removeprefix("mlx.core.") for tensor in tensors.values()]
    config = model.config.to_dict()
    config["architectures"] = [architecture_name(model.config, model.architecture)]
    config["dtype"] = max(DTYPES, key=dtypes.count)
    plans = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    with files_into(directory) as written:
        write_json(written / CONFIG_FILE, config)
        if isinstance(model, HeliumForCausalLM):
            write_json(written / GENERATION_CONFIG_FILE, model.generation_config.to_dict())
        write_weights(written, plans, iter(tensors.items()), max_shard_bytes=max_shard_bytes)


def push_model(
    model: HeliumPreTrainedModel, repo_id: str, *, private: bool | None = None, commit_message: str | None = None
) -> str:
    """Upload what `save_model` writes; see `HeliumPreTrainedModel.push_to_hub`."""
    from huggingface_hub import HfApi

    from helium_mlx.hub_errors import client_errors, explained

    api = HfApi()
    with tempfile.TemporaryDirectory() as directory:
        save_model(model, Path(directory))
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=directory, commit_message=commit_message or "Upload a Helium model"
            )
        except client_errors() as error:
            raise UploadError(explained(error, repo_id)) from None
    return commit.commit_url


def parse_size(size: int | str) -> int:
    """Return bytes: a number, or text such as "5GB" or "200MiB", as transformers' `max_shard_size`."""
    found = (
        re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) *(?:([KMGT]?)(i?)B)?", size.strip(), re.IGNORECASE)
        if isinstance(size, str)
        else None
    )
    if found:
        number, prefix, binary = found.groups("")
        size = int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ArgumentError(f"max_shard_size is {size!r}; expected a number of bytes, or text such as '5GB'")
    return size


def tensors_on_disk(model: HeliumPreTrainedModel) -> dict[str, mx.array]:
    """Return a model's tensors under transformers' names: projections split, a bare decoder without its `model.`."""
    tensors = model.tensors()
    if model.architecture == "Model":
        tensors = {layout.BODY_PREFIX + name: tensor for name, tensor in tensors.items()}
    tensors = layout.split_projections(tensors, model.config)
    if model.architecture == "Model":
        tensors = {name.removeprefix(layout.BODY_PREFIX): tensor for name, tensor in tensors.items()}
    return tensors


def architecture_name(config: HeliumConfig, architecture: layout.Architecture) -> str:
    """Return transformers' name of a class."""
    return ("Helium" if config.model_type == "helium" else "Llama") + architecture


def generation_values(config: HeliumConfig) -> dict[str, object]:
    """Return what `generation_config.json` says of a model that came without one."""
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    return {key: value for key, value in ids.items() if value is not None}
