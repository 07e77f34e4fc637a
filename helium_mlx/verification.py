"""Checks of a converted directory against its source, made before anybody sees it.

Everything is read back from disk. The forward passes stream their weights (see `streamed_model.py`), so that a
checkpoint larger than memory can be checked; they compute in float32, so that weights are all that differs.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import cast

import mlx.core as mx

from helium_mlx.cache import KVCache, new_cache
from helium_mlx.checkpoint import Checkpoint, open_checkpoint
from helium_mlx.errors import CheckpointError
from helium_mlx.generation_config import GenerationConfig
from helium_mlx.model import HeliumForCausalLM, HeliumForTokenClassification, HeliumModel
from helium_mlx.pretrained import HeliumPreTrainedModel
from helium_mlx.quantization import PARTS, ModuleSettings, QuantizationSettings
from helium_mlx.safetensors_writer import DTYPE_NAMES, TensorPlan
from helium_mlx.slabs import Places, Slab, all_finite, dequantized, places_of, read_ahead, slabs_of
from helium_mlx.streamed_model import streamed_model
from helium_mlx.tensor_reader import TensorReader, as_array
from helium_mlx.tokenizer import HeliumTokenizer

# What the models are given: the first tokens of each, and what is then generated. Few, since every step reads all
# weights, and a CPU without a fast BLAS multiplies a 2B model by a row in two seconds.
PROMPTS = ("Once upon a time", "Il était une fois")
PROMPT_TOKENS = 4
SMOKE_TOKENS = 3

# One row in so many is compared with the source; all are looked through for values that cannot be.
ROWS_COMPARED = 16

# Root mean square of a weight's error over that of its scale. Rounding to the nearest code gives 0.29; a matrix in the
# wrong place gives 0.9 at 2 bits, and more at every other width.
AFFINE_ERROR = 0.6

# The error of the weights over the weights, for the modes that round relatively; about twice what normal weights give.
RELATIVE_ERROR = {"mxfp4": 0.3, "mxfp8": 0.08, "nvfp4": 0.25}

# The same of the logits, by the bits of the coarsest module, or its mode: twice what 24 layers of random weights give,
# which is four times the weights' own error. Two unrelated models differ by 1.4: at 2 bits the weights have to do.
LOGITS_ERROR = {2: 1.5, 3: 1.3, 4: 0.8, 5: 0.5, 6: 0.3, 8: 0.1, "nvfp4": 1.0, "mxfp4": 1.0, "mxfp8": 0.4}

# The same two where nothing is quantized.
ROUNDING_ERROR = {"bfloat16": 4e-3, "float16": 1e-3, "float32": 1e-6}
LOGITS_ROUNDING_ERROR = {"bfloat16": 0.03, "float16": 0.01, "float32": 1e-4}


@dataclass(frozen=True)
class Expected:
    """What should be in the directory: the tensors, how modules are packed, and the hashes of files.

    `copies` are the hashes of the source's files that are there byte for byte, `hashes` those of all that was written.
    """

    plans: Mapping[str, TensorPlan]
    settings: ModuleSettings
    copies: Mapping[str, str]
    hashes: Mapping[str, str]


def verify(
    directory: Path, source: Checkpoint, expected: Expected, *, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, object]:
    """Compare `directory` with its source; return each check's figure. `on_progress(done, total)` counts steps.

    Raises CheckpointError, one line that names the check and the figure, for the first check that fails.
    """
    source = open_checkpoint(source.directory, architecture=source.architecture)
    result = open_checkpoint(directory, architecture=source.architecture)
    figures: dict[str, object] = {"tensors": _check_tensors(result, expected), "files": _check_files(expected)}
    if result.architecture == "ForCausalLM":
        figures["eos_token_id"] = _check_eos(result)
    tokenizer = HeliumTokenizer.from_pretrained(directory)
    with ExitStack() as stack:
        readers = [_readers(stack, checkpoint) for checkpoint in (source, result)]
        total = len(readers[1]) + (2 + SMOKE_TOKENS if result.architecture == "ForCausalLM" else 2)
        report = _counter(total, on_progress)
        figures["weights"] = _check_weights(source, readers[0], result, readers[1], expected.settings, report)
        models = [stack.enter_context(streamed_model(checkpoint)) for checkpoint in (source, result)]
        ids = _prompt_ids(tokenizer)
        reference = _outputs(models[0], ids)
        report()
        cache = new_cache(result.config.num_hidden_layers)
        for layer in cache:
            layer.reserve(PROMPT_TOKENS + SMOKE_TOKENS)
        outputs = _outputs(models[1], ids, cache)
        report()
        figures["logits"] = _check_outputs(reference, outputs, _outputs_bound(source, result, expected.settings))
        if isinstance(models[1], HeliumForCausalLM):
            figures["greedy"] = _check_greedy(models[1], cache, outputs, tokenizer, report)
    return figures


def _check_tensors(result: Checkpoint, expected: Expected) -> int:
    found = {name: (info.dtype, info.shape) for infos in result.files.values() for name, info in infos.items()}
    wanted = {name: (DTYPE_NAMES[dtype], shape) for name, (dtype, shape) in expected.plans.items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise CheckpointError(f"tensor {name} is {found.get(name)} on disk, expected {wanted.get(name)}")
    return len(found)


def _check_files(expected: Expected) -> int:
    for name, digest in expected.copies.items():
        if expected.hashes.get(name) != digest:
            raise CheckpointError(f"{name} has SHA-256 {expected.hashes.get(name)}, the source's has {digest}")
    return len(expected.hashes)


def _check_eos(result: Checkpoint) -> list[int]:
    in_config = result.config.eos_token_ids
    in_generation_config = GenerationConfig.of_directory(result.directory, result.config).eos_token_id
    if not in_config or in_generation_config is None:
        raise CheckpointError("eos_token_id is missing, so generation would never end")
    return list(in_config)


def _readers(stack: ExitStack, checkpoint: Checkpoint) -> Places:
    return places_of(checkpoint, {path: stack.enter_context(TensorReader(path)) for path in checkpoint.files})


def _counter(total: int, on_progress: Callable[[int, int], None] | None) -> Callable[[], None]:
    done = count(1)

    def report() -> None:
        step = next(done)
        if on_progress:
            on_progress(step, total)

    return report


def _check_weights(
    source: Checkpoint,
    source_places: Places,
    result: Checkpoint,
    result_places: Places,
    settings: ModuleSettings,
    report: Callable[[], None],
) -> dict[str, object]:
    """Look through every tensor, and compare some rows of each with the source; return the worst error."""
    worst, where = 0.0, ""
    for name in result_places:
        path, _, suffix = name.rpartition(".")
        packing = settings(path) if suffix == "weight" else None
        slabs = read_ahead(slabs_of(result, result_places, name))
        sums = [_slab_sums(slab, octets, _source_rows(source, source_places, slab)) for slab, octets in slabs]
        report()
        if not sums:
            continue  # scales and biases, looked at beside their codes
        totals = [sum(column) for column in zip(*mx.stack(sums).tolist(), strict=True)]  # pyright: ignore
        n_bad, n_nonzero, error, size, scale = cast(list[float], totals)
        if n_bad:
            raise CheckpointError(f"{name} has values that are not finite")
        if not n_nonzero and suffix != "bias":
            raise CheckpointError(f"{name} is all zeros; if the source means that, say --no-verify")
        relative = math.sqrt(error / size) if size else 0.0 if not error else math.inf
        bound = _weight_bound(packing, result.config.dtype, math.sqrt(scale / size) if size else 1.0)
        if not relative <= bound:
            raise CheckpointError(f"{name} is off by {relative:.3g} of its size, where {bound:.3g} is allowed")
        if relative >= worst:
            worst, where = relative, name
    return {"relative_error": round(worst, 6), "worst": where}


def _source_rows(source: Checkpoint, places: Places, slab: Slab) -> mx.array:
    """Return the source's rows, float32, that a slab of the result is compared with: its first ones."""
    path = slab.name.rpartition(".")[0]
    info = places[slab.name][1]
    if slab.n_rows is None and len(info.shape) < 2:
        return places[slab.name][0].read(info).astype(mx.float32)
    n_rows = info.shape[0] if slab.n_rows is None else slab.n_rows
    wanted = max(1, n_rows // ROWS_COMPARED)
    packing = source.settings(path)
    parts = [slab.name] if packing is None else [f"{path}.{part}" for part in PARTS if f"{path}.{part}" in places]
    arrays = {name.rpartition(".")[2]: places[name][0].read(places[name][1], slab.first_row, wanted) for name in parts}
    return arrays["weight"].astype(mx.float32) if packing is None else dequantized(arrays, packing)


def _slab_sums(slab: Slab, octets: dict[str, bytes], reference: mx.array) -> mx.array:
    """Return whether any value is not finite, and whether any is not zero; and sums of what was compared.

    Those are of error^2, reference^2 and scale^2, the last over weights rather than groups. All five are float32.
    """
    arrays = {suffix: as_array(octets[suffix], info) for suffix, (_, info) in slab.stored.items()}
    is_bad = mx.array(False)
    for array in arrays.values():
        is_bad = is_bad | ~all_finite(array)
    codes = next(iter(arrays.values()))
    is_nonzero = (codes != 0).any()
    if "biases" in arrays:
        is_nonzero = is_nonzero | (arrays["biases"] != 0).any()
    n_rows = reference.shape[0] if reference.shape else None
    compared = {suffix: array if n_rows is None else array[:n_rows] for suffix, array in arrays.items()}
    scale = mx.array(0.0)
    if slab.settings is None:
        values = next(iter(compared.values())).astype(mx.float32)
    else:
        values = dequantized(compared, slab.settings)
        if slab.settings.has_biases:
            scale = compared["scales"].astype(mx.float32).square().sum() * slab.settings.group_size
    sums = mx.stack([
        is_bad.astype(mx.float32), is_nonzero.astype(mx.float32), (values - reference).square().sum(),
        reference.square().sum(), scale,
    ])  # fmt: skip
    mx.eval(sums)
    return sums


def _weight_bound(packing: QuantizationSettings | None, dtype: str | None, relative_scale: float) -> float:
    """Return how far a weight may be off, as a part of its size; `relative_scale` is its scales' size, likewise."""
    if packing is None:
        return ROUNDING_ERROR[str(dtype)]
    return AFFINE_ERROR * relative_scale if packing.has_biases else RELATIVE_ERROR[packing.mode]


def _prompt_ids(tokenizer: HeliumTokenizer) -> mx.array:
    ids = [tokenizer.encode(prompt) for prompt in PROMPTS]
    length = min(PROMPT_TOKENS, *map(len, ids))
    return mx.array([row[:length] for row in ids])


def _outputs(model: HeliumPreTrainedModel, ids: mx.array, cache: list[KVCache] | None = None) -> mx.array:
    """Return a model's logits, or a bare decoder's hidden states."""
    if isinstance(model, HeliumForCausalLM):
        return model(ids, past_key_values=cache, use_cache=cache is not None).logits
    if isinstance(model, HeliumModel):
        return model(ids, use_cache=False).last_hidden_state
    # Row by row: a batch would need a padding token.
    return mx.concatenate([cast(HeliumForTokenClassification, model)(row[None], use_cache=False).logits for row in ids])


def _check_outputs(reference: mx.array, outputs: mx.array, bound: float) -> dict[str, object]:
    error = ((outputs - reference).square().sum() / reference.square().sum()).sqrt().item()
    if not cast(float, error) <= bound:
        raise CheckpointError(f"logits are off by {error:.3g} of their size, where {bound:.3g} is allowed")
    agreement = (outputs.argmax(axis=-1) == reference.argmax(axis=-1)).astype(mx.float32).mean().item()
    return {
        "relative_error": round(cast(float, error), 6),
        "bound": bound,
        "same_best": round(cast(float, agreement), 3),
    }


def _outputs_bound(source: Checkpoint, result: Checkpoint, settings: ModuleSettings) -> float:
    packings = [packing for name in result.tensors if (packing := settings(name.rpartition(".")[0])) is not None]
    if packings:
        return max(LOGITS_ERROR[packing.bits if packing.has_biases else packing.mode] for packing in packings)
    return LOGITS_ROUNDING_ERROR[str(result.config.dtype)]


def _check_greedy(
    model: HeliumForCausalLM,
    cache: list[KVCache],
    logits: mx.array,
    tokenizer: HeliumTokenizer,
    report: Callable[[], None],
) -> list[str]:
    """Go on from the prompts, the best token each time; return the texts."""
    steps = []
    for _ in range(SMOKE_TOKENS):
        last = logits[:, -1]
        if not (last.max() > last.min()).item():
            raise CheckpointError("greedy text: every token has the same logit")
        steps.append(last.argmax(axis=-1))
        logits = model(steps[-1][:, None], past_key_values=cache).logits
        report()
    return [tokenizer.decode(cast(list[int], row)) for row in mx.stack(steps, axis=1).tolist()]  # pyright: ignore
