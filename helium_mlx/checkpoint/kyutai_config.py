"""Recognises a file in Kyutai's own MLX layout, and infers from its shapes the config that it lacks."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from helium_mlx.errors import CheckpointError, shown
from helium_mlx.files.names import CONFIG_FILE
from helium_mlx.files.safetensors_header import FLOAT_DTYPES, TensorInfo, read_header

# No shape tells it. Source: Kyutai's MLX code gives the preview 20 heads at a width of 2560.
HEAD_DIM = 128

_LAYER_INDEX = re.compile(r"transformer\.layers\.(\d{1,5})\.", re.ASCII)
Infos = Mapping[str, TensorInfo]


def has_kyutai_names(infos: Infos) -> bool:
    """Whether a file's tensors have Kyutai's names; some may be missing."""
    return any(name in infos for name in ("text_emb.weight", "transformer.layers.0.self_attn.in_proj.weight"))


def find_kyutai_file(directory: Path) -> Path | None:
    """Return the only safetensors file of a directory if it is in this layout, whatever it is called, else None."""
    paths = [path for path in directory.glob("*.safetensors") if path.name.isprintable()]
    return paths[0] if len(paths) == 1 and has_kyutai_names(read_header(paths[0])) else None


def inferred_values(directory: Path) -> tuple[Path, dict[str, object]] | None:
    """Return a file in this layout and the values of the config that it stands for.

    None where there is no such file, or a `config.json` beside it.

    Raises CheckpointError, one line, for several such files, and for shapes that are not a Helium's.
    """
    if os.path.lexists(directory / CONFIG_FILE):
        return None
    paths = sorted(path for path in directory.glob("*.safetensors") if path.name.isprintable())
    headers = {path: infos for path in paths if has_kyutai_names(infos := read_header(path))}
    if headers and len(paths) > 1:
        names = ", ".join(shown(path.name) for path in paths[:9])
        raise CheckpointError(f"{directory}: holds {len(paths)} weight files ({names}); keep the one to read")
    for path, infos in headers.items():
        return path, _values_from_shapes(path, infos)
    return None


def _values_from_shapes(path: Path, infos: Infos) -> dict[str, object]:
    hidden = _rows(path, infos, "out_norm.weight")
    if hidden % HEAD_DIM:
        raise CheckpointError(
            f"{path}: out_norm.weight has {hidden} values, which heads of {HEAD_DIM} do not divide; "
            f"put the model's {CONFIG_FILE} beside it"
        )
    indices = [int(found[1]) for name in infos if (found := _LAYER_INDEX.match(name))]
    return {
        "vocab_size": _rows(path, infos, "text_emb.weight"),
        "hidden_size": hidden,
        "intermediate_size": _rows(path, infos, "transformer.layers.0.gating.linear_in.weight") // 2,
        # Where one of them is left out, its first tensor is found missing.
        "num_hidden_layers": max(indices) + 1,
        "num_attention_heads": hidden // HEAD_DIM,
        "dtype": FLOAT_DTYPES.get(infos["out_norm.weight"].dtype),
    }


def _rows(path: Path, infos: Infos, name: str) -> int:
    if name not in infos:
        raise CheckpointError(f"{path}: {name} is missing; download it again")
    shape = infos[name].shape
    if not shape or 0 in shape:
        raise CheckpointError(f"{path}: {name} is {list(shape)}, which has no rows; download it again")
    return shape[0]
