"""Adapters beside a checkpoint's weights: named, and never applied.

peft saves `adapter_config.json` and `adapter_model.safetensors`; mlx-lm's are `adapters.safetensors`. Where peft is
installed, transformers applies what an `adapter_config.json` beside the weights belongs to, without a word.
"""

import os
from pathlib import Path

from helium_mlx.errors import CheckpointError, shown
from helium_mlx.files.names import ADAPTER_CONFIG_FILE, INDEX_FILE
from helium_mlx.files.untrusted import FileProblem, read_json_object

_FILES = (ADAPTER_CONFIG_FILE, "adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors")


def require_model(directory: Path) -> None:
    """Raise CheckpointError for a directory that holds an adapter and no model."""
    found = [name for name in _FILES if os.path.lexists(directory / name)]
    # Kyutai's only weight file may have any name.
    has_weights = any(path.name not in _FILES for path in directory.glob("*.safetensors"))
    if not found or has_weights or os.path.lexists(directory / INDEX_FILE):
        return
    base = _base(directory)
    raise CheckpointError(
        f"{directory}: holds an adapter ({', '.join(found)}) and no weights of a model; merge it into its base model"
        f"{f', {shown(base)},' if base else ''} with peft's merge_and_unload or mlx_lm.fuse, and name what that writes"
    )


def unapplied_adapter(directory: Path) -> tuple[str, ...]:
    """Return a sentence that names an adapter beside the weights of a model; none where there is none."""
    if not os.path.lexists(directory / ADAPTER_CONFIG_FILE):
        return ()
    return (
        f"{ADAPTER_CONFIG_FILE} left out: its adapter is not applied, as transformers does where peft is installed; "
        "for that, merge it into the weights there (merge_and_unload) and save them",
    )


def _base(directory: Path) -> object:
    """Return what an adapter says that it was trained on: peft's key, or mlx-lm's."""
    try:
        values = read_json_object(directory / ADAPTER_CONFIG_FILE)
    except FileProblem:
        return None
    return values.get("base_model_name_or_path") or values.get("model")
