"""Kyutai's own MLX layout, as in `kyutai/helium-1-preview-2b-mlx`: transformers' names as views of such a file.

There q, k and v are one matrix, and so are gate and up, stacked along their rows: a part is a range of the file's
bytes, and nothing is rearranged. RoPE is interleaved, as in transformers' Helium. There is no `config.json`: sizes
follow from the shapes, all else is the preview's, unless a `config.json` lies beside the file, which then counts.
Quantized files are read too, bits and group size following from the shapes. Errors name tensors as Kyutai does.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.checkpoint.kyutai_config import Infos
from helium_mlx.checkpoint.quantization_settings import PARTS, QuantizationSettings
from helium_mlx.errors import CheckpointError, QuantizationError
from helium_mlx.files.safetensors_header import TensorInfo

# Kyutai's path inside a layer -> transformers' paths, whose rows are stacked in this order
_LAYER_MODULES = {
    "norm1": ("input_layernorm",),
    "self_attn.in_proj": layout.MERGED["self_attn.qkv_proj"],
    "self_attn.out_proj": ("self_attn.o_proj",),
    "norm2": ("post_attention_layernorm",),
    "gating.linear_in": layout.MERGED["mlp.gate_up_proj"],
    "gating.linear_out": ("mlp.down_proj",),
}


def read_as_transformers(path: Path, infos: Infos, config: HeliumConfig) -> tuple[HeliumConfig, dict[str, TensorInfo]]:
    """Return the config, with the quantization if the file has one that it does not mention, and the tensors.

    These have transformers' names and the byte ranges of their rows. Raises CheckpointError, one line that names
    Kyutai's tensor, for one that is missing, has another shape than `config` asks for, or has no place in a Helium.
    """
    if config.quantization is None:
        config = replace(config, quantization=_quantization_from_shapes(path, infos, config))
    tensors: dict[str, TensorInfo] = {}
    left = dict(infos)
    for module, parts in _modules(config):
        quantized = f"{module}.scales" in infos
        for suffix in PARTS if quantized else PARTS[:1]:
            name, shape = f"{module}.{suffix}", _stacked_shape(parts)
            info = left.pop(name, None)
            if info is None:
                raise CheckpointError(f"{path}: {name} {list(shape)} is missing")
            # How wide codes and scales are is compared under transformers' names, like all that is quantized.
            if info.shape[:1] != shape[:1] or (info.shape != shape and not quantized):
                raise CheckpointError(f"{path}: {name} is {list(info.shape)}, expected {list(shape)}")
            tensors |= _row_ranges(info, {f"{part}.{suffix}": rows for part, (rows, *_) in parts.items()})
    if left:
        name, more = next(iter(left)), f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise CheckpointError(f"{path}: holds {name}{more}, which a Helium of Kyutai's layout does not have")
    return config, dict(sorted(tensors.items(), key=lambda item: item[1].start))


def _modules(config: HeliumConfig) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """Yield Kyutai's modules with their parts: transformers' paths and unquantized shapes."""
    embedding, sizes = (config.vocab_size, config.hidden_size), layout.projection_sizes(config)
    yield "text_emb", {"model.embed_tokens": embedding}
    yield "out_norm", {"model.norm": (config.hidden_size,)}
    if not config.tie_word_embeddings:
        yield "text_linear", {"lm_head": embedding}
    for index in range(config.num_hidden_layers):
        prefix = layout.layer_prefix(index)
        for module, parts in _LAYER_MODULES.items():
            shapes = {part: sizes[part][:2] if part in sizes else (config.hidden_size,) for part in parts}
            yield f"transformer.layers.{index}.{module}", {f"{prefix}.{part}": shapes[part] for part in parts}


def _stacked_shape(parts: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    first = next(iter(parts.values()))
    return sum(rows for rows, *_ in parts.values()), *first[1:]


def _row_ranges(info: TensorInfo, rows_of: Mapping[str, int]) -> dict[str, TensorInfo]:
    """Return the parts of a tensor, by name, whose rows lie one after the other."""
    row_bytes = (info.end - info.start) // info.shape[0]
    parts: dict[str, TensorInfo] = {}
    start = info.start
    for name, rows in rows_of.items():
        parts[name] = replace(info, shape=(rows, *info.shape[1:]), start=start, end=start + rows * row_bytes)
        start = parts[name].end
    return parts


def _quantization_from_shapes(path: Path, infos: Infos, config: HeliumConfig) -> dict[str, object] | None:
    """Return the settings that all quantized modules share; None where there are none.

    Kyutai quantizes with `mlx.nn.quantize`, every module alike.
    """
    found: QuantizationSettings | None = None
    for module, parts in _modules(config):
        codes, scales = infos.get(f"{module}.weight"), infos.get(f"{module}.scales")
        if codes is None:
            break  # said where the tensors are compared
        if scales is None:
            continue
        settings = _settings_from_shapes(codes.shape, scales.shape, _stacked_shape(parts)[-1])
        if settings is None or found not in (None, settings):
            raise CheckpointError(
                f"{path}: {module}.weight is {list(codes.shape)} with scales {list(scales.shape)}, from which bits "
                f"and group size do not follow{' as from the rest' if settings else ''}; take the unquantized file"
            )
        found = settings
    return None if found is None else found.to_dict()


def _settings_from_shapes(codes: tuple[int, ...], scales: tuple[int, ...], columns: int) -> QuantizationSettings | None:
    if len(codes) != 2 or len(scales) != 2 or not scales[1] or 32 * codes[1] % columns or columns % scales[1]:
        return None
    try:
        return QuantizationSettings(group_size=columns // scales[1], bits=32 * codes[1] // columns)
    except QuantizationError:
        return None
