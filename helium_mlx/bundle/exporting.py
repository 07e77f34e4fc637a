"""`export`: a checkpoint in, a bundle out that a program without Python can run (see `bundle.py`).

The bundle is written beside its destination, opened again, run over its own vectors, and renamed, so that it is there
whole or not at all.
"""

import inspect
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from helium_mlx import backend
from helium_mlx.bundle.bundle import open_bundle
from helium_mlx.bundle.functions import BundleFunction, bundled_weights, function_shapes
from helium_mlx.bundle.manifest import (
    BUNDLE_FILE,
    FUNCTIONS_DIRECTORY,
    MANIFEST_FILE,
    SAMPLING_OPTIONS,
    VECTORS_FILE,
    WEIGHTS_FILE,
    ArraySpec,
    Manifest,
    ModelFacts,
    bundle_files,
    file_entries,
    function_file,
)
from helium_mlx.bundle.runner import BundleRunner
from helium_mlx.bundle.tokenizer import write_tokenizer
from helium_mlx.bundle.vectors import check_vectors, make_vectors
from helium_mlx.checkpoint.checkpoint import Checkpoint, open_checkpoint
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import BundleError, CheckpointError, HeliumError, UsageError
from helium_mlx.files.atomic import new_directory, require_free, write_json
from helium_mlx.files.hub import resolve
from helium_mlx.files.names import CONFIG_FILE
from helium_mlx.files.safetensors_writer import SafetensorsWriter
from helium_mlx.generation.streaming import stream_generate
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.loading import load_model
from helium_mlx.option_values import OnProgress, require_whole
from helium_mlx.table import Table, short_repr
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer
from helium_mlx.version import __version__


@dataclass(frozen=True)
class ExportReport:
    """What an export did. Sizes are bytes; `error` is the largest of a logit, relative, None where not verified."""

    output: str
    backend: str
    context: int
    functions: int
    weights_bytes: int
    total_bytes: int
    bits_per_weight: float
    vectors: int
    error: float | None
    seconds: float

    def __repr__(self) -> str:
        return short_repr(
            self, output=self.output, backend=self.backend, total_bytes=self.total_bytes, error=self.error
        )

    def _repr_html_(self) -> str:
        columns = [("context", "tokens"), ("size", "MB"), ("bits", "a weight"), ("largest error", "%"), ("time", "s")]
        row = [
            self.output,
            f"{self.context:,}",
            f"{self.total_bytes / 1e6:,.1f}",
            f"{self.bits_per_weight:.2f}",
            "not verified" if self.error is None else f"{100 * self.error:.3g}",
            f"{self.seconds:.1f}",
        ]
        return Table("bundle", columns, [row]).html(f"for {self.backend}")


def export(
    model: str | Path,
    output: str | Path,
    *,
    context: int | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    verify: bool = True,
    on_progress: OnProgress | None = None,
    on_verification: OnProgress | None = None,
) -> ExportReport:
    """Export a checkpoint (directory, Hub repository, or "demo") as the bundle `output`, for the backend at hand.

    `context` is how many tokens a text may have, prompt and completion; None is as many as the model can. `dtype`
    (bfloat16, float16, float32) is what the bundle computes in; None is the checkpoint's own, or float32 for quantized
    weights on the CPU. An existing bundle is refused, or with `overwrite` replaced once the new one is complete.
    `verify` runs the bundle over its own vectors before that. `on_progress(done, total)` counts the model's vectors,
    `on_verification(done, total)` the bundle's.

    Raises CheckpointError, ConfigError, TokenizerError, UsageError or BundleError, and GenerationError for logits that
    are not numbers; then nothing is written.
    """
    start = time.perf_counter()
    destination = Path(output)
    require_free(destination, replace=overwrite, foreign=_foreign, error=BundleError)
    checkpoint = _causal_lm(resolve(model, revision=revision, subfolder=subfolder))
    tokens = _checked_context(context, checkpoint.config)
    tokenizer = HeliumTokenizer.from_pretrained(checkpoint.directory)
    loaded = load_model(checkpoint, dtype=dtype)

    with new_directory(destination, replace=overwrite, foreign=_foreign, error=BundleError) as directory:
        manifest = _write(loaded, tokenizer, directory, tokens)
        known = make_vectors(loaded, tokenizer, context=tokens, on_progress=on_progress)
        write_json(directory / VECTORS_FILE, asdict(known))
        files = file_entries(directory)
        write_json(directory / MANIFEST_FILE, manifest.to_dict(files))
        error = None
        if verify:
            del loaded
            error = _verified(
                directory, destination, lambda runner: check_vectors(runner, known, on_progress=on_verification)
            )
        sizes = {name: (directory / name).stat().st_size for name in bundle_files(directory)}
    return ExportReport(
        output=str(destination),
        backend=manifest.backend,
        context=tokens,
        functions=len(manifest.functions),
        weights_bytes=sizes[WEIGHTS_FILE],
        total_bytes=sum(sizes.values()),
        bits_per_weight=manifest.model.bits_per_weight,
        vectors=len(known.vectors),
        error=error,
        seconds=round(time.perf_counter() - start, 3),
    )


def _foreign(directory: Path) -> str | None:
    """Return what of a directory is not a bundle's, None if all is."""
    names = [name for name in bundle_files(directory) if name != MANIFEST_FILE and not BUNDLE_FILE.fullmatch(name)]
    if names:
        return f"holds {names[0]}, which is no part of a bundle"
    is_bundle = (directory / MANIFEST_FILE).is_file() or not any(directory.iterdir())
    return None if is_bundle else f"has no {MANIFEST_FILE}, and so is not a bundle"


def _causal_lm(directory: Path) -> Checkpoint:
    checkpoint = open_checkpoint(directory, architecture=None)
    if checkpoint.architecture != "ForCausalLM":
        raise CheckpointError(
            f"{directory / CONFIG_FILE}: the architecture is {checkpoint.architecture}; a bundle generates text, so "
            "give a causal LM"
        )
    return checkpoint


def _checked_context(context: int | None, config: HeliumConfig) -> int:
    limit = config.max_position_embeddings
    if context is None:
        return limit
    return require_whole("context", context, 2, limit, allowed=f"from 2 to the model's {limit}", error=UsageError)


def _write(model: HeliumForCausalLM, tokenizer: HeliumTokenizer, directory: Path, context: int) -> Manifest:
    """Write tokenizer, weights and functions, and return what the manifest says of them."""
    tensors = bundled_weights(model)
    manifest = Manifest(
        backend=backend.name(),
        mlx_version=version("mlx"),
        helium_version=__version__,
        model=model_facts(model),
        context=context,
        tokenizer=write_tokenizer(tokenizer, directory),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_ids=tokenizer.eos_token_ids,
        reserved_ids=tuple(sorted(tokenizer.reserved_ids)),
        sampling=_sampling_defaults(),
        weights=tuple(
            ArraySpec(name, tensor.shape, backend.dtype_name(tensor.dtype)) for name, tensor in tensors.items()
        ),
        functions=tuple(function_shapes(context)),
    )
    plans = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    with SafetensorsWriter(directory / WEIGHTS_FILE, plans) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    (directory / FUNCTIONS_DIRECTORY).mkdir()
    for shape in manifest.functions:
        inputs = [spec.zeros() for spec in manifest.model.inputs(shape)]
        BundleFunction(model, shape).write(directory / function_file(shape), inputs)
    return manifest


def model_facts(model: HeliumForCausalLM) -> ModelFacts:
    """Return what a manifest says of a model."""
    config, weights_bytes = model.config, sum(tensor.nbytes for tensor in model.tensors().values())
    return ModelFacts(
        model_type=config.model_type,
        vocab_size=config.vocab_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        dtype=backend.dtype_name(model.model.norm.weight.dtype),
        bits_per_weight=round(8 * weights_bytes / model.num_parameters(), 3),
    )


def _sampling_defaults() -> dict[str, object]:
    parameters = inspect.signature(stream_generate).parameters
    return {name: parameters[name].default for name in SAMPLING_OPTIONS}


def _verified(directory: Path, destination: Path, check: Callable[[BundleRunner], float]) -> float:
    try:
        return check(BundleRunner(open_bundle(directory)))
    except HeliumError as error:
        said = str(error).replace(f"{directory}/", "").replace(str(directory), "the result")
        raise BundleError(f"{destination}: verification failed, so nothing is kept: {said}") from None
