"""Checks of a converted directory against its source, made before anybody sees it.

Everything is read back from disk. The forward passes stream their weights (see `model/streamed.py`), so that a
checkpoint larger than memory can be checked; they compute in float32, so that weights are all that differs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import cast

import mlx.core as mx

from helium_mlx.backend import dtype_name
from helium_mlx.checkpoint.checkpoint import Checkpoint, open_checkpoint
from helium_mlx.checkpoint.generation_config import GenerationConfig
from helium_mlx.checkpoint.quantization_settings import ModuleSettings, QuantizationSettings
from helium_mlx.checkpoint.row_blocks import (
    Places,
    RowBlock,
    all_finite,
    dequantized,
    places_of,
    read_ahead,
    row_blocks_of,
)
from helium_mlx.errors import CheckpointError, shown
from helium_mlx.files.names import INDEX_FILE
from helium_mlx.files.safetensors_writer import DTYPE_NAMES, TensorPlan
from helium_mlx.files.untrusted import read_json_object
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.make import new_cache
from helium_mlx.model.helium import HeliumForCausalLM, HeliumForTokenClassification, HeliumModel
from helium_mlx.model.pretrained import HeliumPreTrainedModel
from helium_mlx.model.streamed import Converted, streamed_model
from helium_mlx.option_values import OnProgress
from helium_mlx.quantization.plain import converted_parts
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

# What the models are given: the first tokens of each, and what is then generated. Few, since every step reads all
# weights, and a CPU without a fast BLAS multiplies a 2B model by a row in two seconds.
PROMPTS = ("Once upon a time", "Il était une fois")
PROMPT_TOKENS = 4
SMOKE_TOKENS = 3

# Of quantized matrices, one row in so many is compared with the source; of others, every row.
ROWS_COMPARED = 16

# Root mean square of a weight's error over that of its scale. Rounding to the nearest code gives 0.29; a matrix in the
# wrong place gives 0.9 at 2 bits, and more at every other width.
AFFINE_ERROR = 0.5

# The least cosine between weights and the source's where they make up for errors elsewhere, so that at 2 bits the error
# can exceed the weight. A matrix in another's place gives 0 at every width.
CALIBRATED_COSINE = 0.4

# The error of the weights over the weights, for the modes that round relatively: above the worst that rounding can do
# where one value dominates its group, which is about twice what normal weights give.
RELATIVE_ERROR = {"mxfp4": 0.3, "mxfp8": 0.13, "nvfp4": 0.35}

# What rounding to a dtype costs, over the values.
ROUNDING_ERROR = {"bfloat16": 4e-3, "float16": 1e-3, "float32": 1e-6}

# The error of the logits, by the bits of the coarsest module, or its mode or dtype: twice what 24 layers of random
# weights give. Some models are more sensitive; beyond it, what the source's own weights give at this precision decides.
LOGITS_ERROR = {
    "2": 1.5, "3": 1.3, "4": 0.8, "5": 0.5, "6": 0.3, "8": 0.1, "nvfp4": 1.0, "mxfp4": 1.0, "mxfp8": 0.4,
    "bfloat16": 0.03, "float16": 0.01, "float32": 1e-4,
}  # fmt: skip
SAME_LOGITS = 1e-3

# What calibrated rounding may do to the logits of two short prompts, over what plain rounding does.
PLAIN_FACTOR = 2.0

# The figure of the logits that is a sentence for the user, where there is one.
NOTE = "note"


@dataclass(frozen=True)
class Expected:
    """What should be in the directory: tensors by name on disk, how modules are packed, and the files.

    With `is_plain`, weights are rounded to the nearest code; else they are rounded for the outputs that they give.

    `json_files` maps names to contents, `copies` the names of the source's files that are there byte for byte, but for
    local paths in templates, to their SHA-256, and `hashes` everything that was written to its own.
    """

    plans: Mapping[str, TensorPlan]
    settings: ModuleSettings
    dtype: mx.Dtype
    json_files: Mapping[str, Mapping[str, object]]
    copies: Mapping[str, str]
    hashes: Mapping[str, str]
    is_plain: bool = True


def verify(
    directory: Path, source: Checkpoint, expected: Expected, *, on_progress: OnProgress | None = None
) -> dict[str, object]:
    """Compare `directory` with its source; return each check's figure.

    `on_progress(done, total)` counts blocks of rows.

    Raises CheckpointError, one line that names the check and the figure, for the first check that fails.
    """
    source = open_checkpoint(source.directory, architecture=source.architecture)
    result = open_checkpoint(directory, architecture=source.architecture)
    figures: dict[str, object] = {"tensors": _check_tensors(result, expected), "files": _check_files(result, expected)}
    if result.architecture == "ForCausalLM":
        figures["eos_token_id"] = _check_eos(result)
    tokenizer = HeliumTokenizer.from_pretrained(directory)
    smoke_tokens = SMOKE_TOKENS if "eos_token_id" in figures else 0
    # The weights, a pass over the prompts, and one a token; then the source's pass.
    blocks = _n_blocks(result) * (2 + smoke_tokens) + _n_blocks(source)
    report = _counter(blocks, on_progress)
    figures["weights"] = _check_weights(source, result, expected, report)
    with streamed_model(result, on_block=report) as model:
        ids, cache = prompt_ids(tokenizer), _small_cache(model)
        outputs = _outputs(model, ids, cache)
        figures["logits"] = _check_outputs(source, ids, outputs, expected, report)
        if isinstance(model, HeliumForCausalLM):
            figures["greedy"] = _check_greedy(model, cache, outputs, tokenizer)
    if on_progress:
        on_progress(blocks, blocks)
    return figures


def prompt_ids(tokenizer: HeliumTokenizer) -> mx.array:
    """Return what the models are given, (prompts, tokens). Raises TokenizerError if it cannot be encoded."""
    ids = [tokenizer.encode(prompt) for prompt in PROMPTS]
    length = min(PROMPT_TOKENS, *map(len, ids))
    return mx.array([row[:length] for row in ids])


def _check_tensors(result: Checkpoint, expected: Expected) -> int:
    found = {name: (info.dtype, info.shape) for infos in result.files.values() for name, info in infos.items()}
    wanted = {name: (DTYPE_NAMES[dtype], shape) for name, (dtype, shape) in expected.plans.items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise CheckpointError(f"tensor {name} is {found.get(name)} on disk, expected {wanted.get(name)}")
    return len(found)


def _check_files(result: Checkpoint, expected: Expected) -> int:
    for name, values in expected.json_files.items():
        found = read_json_object(result.directory / name)
        for key in sorted(values.keys() | found.keys()):
            if found.get(key) != values.get(key) or (key in found) != (key in values):
                raise CheckpointError(f"{name} has {key} = {shown(found.get(key))}, expected {shown(values.get(key))}")
    for name, digest in expected.copies.items():
        if expected.hashes.get(name) != digest:
            raise CheckpointError(f"{name} has SHA-256 {expected.hashes.get(name)}, the source's has {digest}")
    weights = {path.name for path in result.files} | ({INDEX_FILE} if len(result.files) > 1 else set())
    strangers = expected.hashes.keys() ^ (expected.json_files.keys() | expected.copies.keys() | weights)
    if strangers:
        raise CheckpointError(f"{min(strangers)} should not be there, or is missing")
    return len(expected.hashes)


def _check_eos(result: Checkpoint) -> list[int]:
    in_config = result.config.eos_token_ids
    in_generation_config = GenerationConfig.of_directory(result.directory, result.config).eos_token_id
    if not in_config or in_generation_config is None:
        raise CheckpointError("eos_token_id is missing, so generation would never end")
    return list(in_config)


def _counter(total: int, on_progress: OnProgress | None) -> Callable[[], None]:
    done = count(1)

    def report() -> None:
        # An embedding is no part of a pass, and a precision that moves much takes another one: both are estimates.
        step = min(next(done), total - 1)
        if on_progress:
            on_progress(step, total)

    return report


def _n_blocks(checkpoint: Checkpoint) -> int:
    places = places_of(checkpoint)
    return sum(1 for name in places for _ in row_blocks_of(checkpoint, places, name))


def _check_weights(
    source: Checkpoint, result: Checkpoint, expected: Expected, report: Callable[[], None]
) -> dict[str, object]:
    """Look through every tensor, and compare it with the source; return the worst error."""
    source_places, result_places = places_of(source), places_of(result)
    worst, where = 0.0, ""
    for name in result_places:
        blocks = row_blocks_of(result, result_places, name)
        figures: list[_Compared] = []
        for block, data in read_ahead(blocks):
            figures.append(_compared(block, data, _source_block(source, source_places, block), expected.dtype))
            report()
        if not figures:
            continue  # scales and biases, looked at beside their codes
        error = _require_sound(name, figures, expected, len(result_places[name][1].shape))
        if error >= worst:
            worst, where = error, name
    return {"relative_error": round(worst, 6), "worst": where}


@dataclass(frozen=True)
class _Compared:
    """What a block of the result and its source's rows have to say; sums are of squares over the rows compared."""

    is_finite: bool
    is_zero: bool
    source_is_zero: bool
    n_different: int
    error: float
    size: float
    own_size: float
    scale: float


def _source_block(source: Checkpoint, places: Places, block: RowBlock) -> RowBlock:
    """Return the source's rows that a block of the result was made from."""
    return replace(next(row_blocks_of(source, places, block.name)), first_row=block.first_row, n_rows=block.n_rows)


def _compared(block: RowBlock, data: dict[str, bytes], source: RowBlock, dtype: mx.Dtype) -> _Compared:
    arrays = block.arrays(data)
    is_finite, is_zero = mx.array(True), mx.array(True)
    for suffix, array in arrays.items():
        is_finite = is_finite & all_finite(array)
        if suffix != "scales":
            is_zero = is_zero & ~(array != 0).any()
    # Other rows in each block, so that no damage in steps falls between them.
    step = ROWS_COMPARED if block.settings is not None and next(iter(arrays.values())).shape[0] > ROWS_COMPARED else 1
    first = block.first_row % step
    values = _values(block, arrays, first, step)
    reference = _values(source, source.arrays(source.read()), first, step)
    n_different, scale = mx.array(0), mx.array(0.0)
    if block.settings is None:
        n_different = (values != reference.astype(dtype).astype(mx.float32)).sum()
    elif block.settings.has_biases:
        scale = arrays["scales"][first::step].astype(mx.float32).square().sum() * block.settings.group_size
    error = (values - reference).square().sum()
    figures = [
        is_finite,
        is_zero,
        ~(reference != 0).any(),
        n_different,
        error,
        reference.square().sum(),
        values.square().sum(),
        scale,
    ]
    mx.eval(figures)
    return _Compared(*(figure.item() for figure in figures))  # pyright: ignore[reportArgumentType]


def _values(block: RowBlock, arrays: dict[str, mx.array], first: int, step: int) -> mx.array:
    """Return each `step`th row of a block from `first` on, float32; a scalar with 1."""
    if step > 1:
        arrays = {suffix: array[first::step] for suffix, array in arrays.items()}
    return (
        next(iter(arrays.values())).astype(mx.float32)
        if block.settings is None
        else dequantized(arrays, block.settings)
    )


def _require_sound(name: str, blocks: list[_Compared], expected: Expected, n_dims: int) -> float:
    """Return the error of a tensor over its size; raise CheckpointError for one that is not what it should be."""
    settings = expected.settings(name.rpartition(".")[0]) if name.endswith(".weight") else None
    dtype = dtype_name(expected.dtype)
    if not all(block.is_finite for block in blocks):
        raise CheckpointError(f"{name} has values that are not finite")
    if all(block.is_zero for block in blocks):
        if not all(block.source_is_zero for block in blocks):
            raise CheckpointError(f"{name} is all zeros, as the source is not: take a dtype or mode of larger range")
        if n_dims > 1:
            raise CheckpointError(f"{name} is all zeros, in the source too; if that is meant, say verify=False")
    n_different = sum(block.n_different for block in blocks)
    if n_different:
        raise CheckpointError(f"{name} differs from the source, rounded to {dtype}, in {n_different} values")
    if settings is not None:
        for block in blocks:
            _require_close(name, block, settings, dtype, is_plain=expected.is_plain)
    size = sum(block.size for block in blocks)
    relative = math.sqrt(sum(block.error for block in blocks) / size) if size else 0.0
    if settings is None and relative > 4 * ROUNDING_ERROR[dtype]:
        raise CheckpointError(
            f"{name} loses {relative:.3g} of its size in {dtype}, whose range is too small for it; take another dtype"
        )
    return relative


def _require_close(name: str, block: _Compared, settings: QuantizationSettings, dtype: str, *, is_plain: bool) -> None:
    """Raise CheckpointError for rows that are further off than rounding to codes makes them."""
    if not is_plain:
        _require_aligned(name, block)
        return
    size = math.sqrt(block.size)
    bound = RELATIVE_ERROR.get(settings.mode, 0.0) * size
    if settings.has_biases and size:
        bound = AFFINE_ERROR * math.sqrt(block.scale) + ROUNDING_ERROR[dtype] * size
    error = math.sqrt(block.error)
    if not error <= bound * 1.001 + 1e-30:
        off, allowed = (error / size, bound / size) if size else (math.inf, 0.0)
        form = f"{settings.mode} at {settings.bits} bits"
        raise CheckpointError(f"{name} is off by {off:.3g} of its size, where {form} allows {allowed:.3g}")


def _require_aligned(name: str, block: _Compared) -> None:
    """Raise CheckpointError for rows that point elsewhere than the source's."""
    lengths = math.sqrt(block.size * block.own_size)
    cosine = (block.size + block.own_size - block.error) / (2 * lengths) if lengths else 1.0
    if not cosine >= CALIBRATED_COSINE:
        raise CheckpointError(
            f"{name} has a cosine of {cosine:.3g} with the source's, where calibrated rounding keeps above "
            f"{CALIBRATED_COSINE}"
        )


def _small_cache(model: HeliumPreTrainedModel) -> list[KVCache]:
    cache = new_cache(model.config.num_hidden_layers)
    for layer in cache:
        layer.reserve(PROMPT_TOKENS + SMOKE_TOKENS)
    return cache


def _outputs(model: HeliumPreTrainedModel, ids: mx.array, cache: list[KVCache] | None = None) -> mx.array:
    """Return a model's logits, or a bare decoder's hidden states."""
    if isinstance(model, HeliumForCausalLM):
        return model(ids, past_key_values=cache, use_cache=cache is not None).logits
    if isinstance(model, HeliumModel):
        return model(ids, use_cache=False).last_hidden_state
    # Row by row: a batch would need a padding token.
    classifier = cast(HeliumForTokenClassification, model)
    return mx.concatenate([classifier(row[None], use_cache=False).logits for row in ids])


def _check_outputs(
    source: Checkpoint, ids: mx.array, outputs: mx.array, expected: Expected, report: Callable[[], None]
) -> dict[str, object]:
    with streamed_model(source, on_block=report) as model:
        reference = _outputs(model, ids)
    error, bound = _relative_error(outputs, reference), _logits_bound(expected)
    same_best = (outputs.argmax(axis=-1) == reference.argmax(axis=-1)).astype(mx.float32).mean().item()
    figures: dict[str, object] = {"relative_error": round(error, 6), "usual": bound, "same_best": same_best}
    if error <= bound:
        return figures
    how = Converted(expected.settings, expected.dtype, converted_parts)
    with streamed_model(source, converted=how, on_block=report) as model:
        plain = _outputs(model, ids)
    if not expected.is_plain:
        _require_no_worse(error, _relative_error(plain, reference))
        return figures
    own = _relative_error(outputs, plain)
    if not own <= SAME_LOGITS:
        raise CheckpointError(
            f"logits are off by {error:.3g} of their size, where {bound:.3g} is usual, and by {own:.3g} from what the "
            "source's weights give at this precision"
        )
    return figures | {NOTE: f"this precision moves the logits by {error:.2g} of their size, where {bound:.2g} is usual"}


def _require_no_worse(error: float, plain: float) -> None:
    """Raise CheckpointError for logits further off than plain rounding's, twice over: the prompts are short."""
    if not error <= PLAIN_FACTOR * plain:
        raise CheckpointError(
            f"logits are off by {error:.3g} of their size, where plain rounding of the source's weights gives "
            f"{plain:.3g}, and twice that is allowed"
        )


def _relative_error(outputs: mx.array, reference: mx.array) -> float:
    return cast(float, ((outputs - reference).square().sum() / reference.square().sum()).sqrt().item())


def _logits_bound(expected: Expected) -> float:
    quantized = [settings for name in expected.plans if (settings := expected.settings(name.rpartition(".")[0]))]
    if not quantized:
        return LOGITS_ERROR[dtype_name(expected.dtype)]
    return max(LOGITS_ERROR[str(settings.bits) if settings.has_biases else settings.mode] for settings in quantized)


def _check_greedy(
    model: HeliumForCausalLM,
    cache: list[KVCache],
    logits: mx.array,
    tokenizer: HeliumTokenizer,
) -> list[str]:
    """Continue from the prompts, the best token each time; return the texts."""
    steps = []
    for _ in range(SMOKE_TOKENS):
        last = logits[:, -1]
        if not (last.max() > last.min()).item():
            raise CheckpointError("greedy text: every token has the same logit")
        steps.append(last.argmax(axis=-1))
        logits = model(steps[-1][:, None], past_key_values=cache).logits
    return [tokenizer.decode(cast(list[int], row)) for row in mx.stack(steps, axis=1).tolist()]  # pyright: ignore
