"""What a conversion will do, decided before a tensor is read: config, tensors, bits of each module."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx

from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.checkpoint import CODE_KEYS, Checkpoint
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.checkpoint.generation_config import (
    GenerationConfig,
    generation_values,
    is_no_token,
    read_generation_config,
)
from helium_mlx.checkpoint.layout import architecture_name
from helium_mlx.checkpoint.quantization_settings import ModuleSettings, config_entry, unquantized
from helium_mlx.conversion.options import ConversionOptions
from helium_mlx.conversion.verification import prompt_ids
from helium_mlx.errors import TokenizerError
from helium_mlx.files.local_paths import published, published_text
from helium_mlx.files.names import (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    INDEX_FILE,
    SETTINGS_FILES,
    TEMPLATE_SUFFIX,
    companion_files,
    relative_name,
)
from helium_mlx.files.safetensors_reader import MLX_DTYPES
from helium_mlx.files.safetensors_writer import TensorPlan, plan_bytes
from helium_mlx.files.untrusted import FileProblem, read_json_object, require_file
from helium_mlx.model_card.source import licence_files
from helium_mlx.option_values import OnProgress
from helium_mlx.quantization.bit_allocation import Allocation, allocate
from helium_mlx.quantization.calibration import Windows, calibration_windows
from helium_mlx.quantization.forecast import told_in_words
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer
from helium_mlx.tokenizer.vocabularies import MAX_TOKENIZER_BYTES


@dataclass(frozen=True)
class ConversionPlan:
    """What is to be done: the source, and the result's config and tensors (by name on disk, in forward order).

    `root` is the directory around the source that was named with it as a subfolder, or the source's own.
    """

    source: Checkpoint
    tokenizer: HeliumTokenizer
    options: ConversionOptions
    settings: ModuleSettings
    config: HeliumConfig
    tensors: dict[str, TensorPlan]
    parameters: int
    windows: Windows | None
    allocation: Allocation | None
    companions: list[Path]
    rewritten: dict[str, dict[str, object]]
    templates: dict[str, bytes]
    root: Path

    @property
    def dtype(self) -> mx.Dtype:
        """What everything that is not quantized is stored in."""
        return getattr(mx, str(self.config.dtype))

    @property
    def total_bytes(self) -> int:
        """What the tensors will take on disk."""
        return sum(map(plan_bytes, self.tensors.values()))

    @property
    def json_files(self) -> dict[str, dict[str, object]]:
        """What is written as JSON, by file name: the configs, and the source's settings that held a local path.

        A generation config that is whole and holds no such path is copied instead.
        """
        directory = self.source.directory
        written = {CONFIG_FILE: self.config.to_dict()}
        if (values := written_generation_config(self.source)) is not None:
            written[GENERATION_CONFIG_FILE] = values
        return self.rewritten | {name: published(values, directory) for name, values in written.items()}

    @property
    def copies(self) -> list[Path]:
        """What is copied as it is, beside the tokenizer's own files and the licences."""
        paths = [path for path in self.companions if path not in self.tokenizer.files]
        own = [] if GENERATION_CONFIG_FILE in self.json_files else [self.source.directory / GENERATION_CONFIG_FILE]
        return [*paths, *own]

    @property
    def licences(self) -> list[Path]:
        """The licence and notice files that hold for the source."""
        return licence_files(self.source.directory, self.root)

    @property
    def source_files(self) -> list[Path]:
        """What the result is made from."""
        beside = [path for name in (CONFIG_FILE, INDEX_FILE) if (path := self.source.directory / name).is_file()]
        return [*beside, *self.copies, *self.licences, *self.tokenizer.files, *self.source.files]

    @property
    def warnings(self) -> list[str]:
        """What the user should know of files that are not as the source has them."""
        cleaned = [*self.rewritten, *self.templates]
        said = [f"{name} named a path, of which the last part is left" for name in cleaned]
        values = read_generation_config(self.source.directory)
        if values is not None and written_generation_config(self.source) is not None:
            ends = self.source.config.eos_token_id
            said.append(f"{GENERATION_CONFIG_FILE} had no eos_token_id; it has {CONFIG_FILE}'s now: {ends}")
        return said


def written_generation_config(source: Checkpoint) -> dict[str, object] | None:
    """Return the `generation_config.json` of a result; None where the source's is copied as it is.

    Made of the config where there is none that can be read. One without an end, which the config has, gets it.
    """
    values, config = read_generation_config(source.directory), source.config
    if values is None:
        return generation_values(config)
    if is_no_token(values.get("eos_token_id")) and config.eos_token_id is not None:
        return {**values, "eos_token_id": config.eos_token_id}
    return None


def plan_conversion(
    source: Checkpoint,
    options: ConversionOptions,
    on_allocation: OnProgress | None,
    *,
    root: Path,
    on_forecast: Callable[[str], None] | None = None,
) -> ConversionPlan:
    """Decide everything about a conversion before a tensor is written; bits by sensitivity are measured here."""
    settings = options.settings_for(source)
    tokenizer = HeliumTokenizer.from_pretrained(source.directory)
    _require_encodable(tokenizer, source)
    shapes = layout.tensor_shapes(source.config, unquantized, source.architecture)
    parameters = sum(math.prod(shape) for _, shape in shapes)
    windows = allocation = None
    if options.is_calibrated:
        windows = calibration_windows(tokenizer, source.config, options.calibration_text)
    if options.target_bpw is not None and windows is not None:
        allocation = allocate(
            source,
            windows,
            options.target_bpw,
            rounding=options.rounding_kind,
            dtype=getattr(mx, options.dtype or source.dtype),
            on_progress=on_allocation,
            on_forecast=told_in_words(on_forecast, "Choosing bits", parameters),
        )
        settings = allocation.settings.get
    config = _converted_config(source, settings, options.dtype)
    tensors = _tensor_plans(config, settings, source.architecture)
    companions = _readable_companions(source.directory)
    return ConversionPlan(
        source=source,
        tokenizer=tokenizer,
        options=options,
        settings=settings,
        config=config,
        tensors=tensors,
        parameters=parameters,
        windows=windows,
        allocation=allocation,
        companions=companions,
        rewritten=_with_local_paths(source.directory),
        templates=_templates_with_local_paths(source.directory, companions),
        root=root,
    )


def _readable_companions(directory: Path) -> list[Path]:
    """Return what stands beside the tokenizer. Raises TokenizerError for a file that is not to be opened."""
    paths = companion_files(directory)
    for path in paths:
        try:
            require_file(path, MAX_TOKENIZER_BYTES)
        except FileProblem as problem:
            raise TokenizerError(f"{path} {problem}") from None
    return paths


def _with_local_paths(directory: Path) -> dict[str, dict[str, object]]:
    """Return the settings that hold a path of some machine, which is not to be published, without it."""
    rewritten: dict[str, dict[str, object]] = {}
    for name in (*SETTINGS_FILES, GENERATION_CONFIG_FILE):
        try:
            values = read_json_object(directory / name)
        except FileProblem:
            continue
        cleaned = published(values, directory)
        if cleaned != values:
            rewritten[name] = cleaned
    return rewritten


def _templates_with_local_paths(directory: Path, companions: list[Path]) -> dict[str, bytes]:
    """Return the chat templates that hold a path of this machine, without it; the tokenizer saves them so."""
    read = {path: path.read_bytes() for path in companions if path.suffix == TEMPLATE_SUFFIX}
    cleaned = {path: published_text(data, directory) for path, data in read.items()}
    return {relative_name(path, directory): data for path, data in cleaned.items() if data != read[path]}


def _require_encodable(tokenizer: HeliumTokenizer, source: Checkpoint) -> None:
    """Raise TokenizerError, before any work, for a tokenizer that fails at a prompt or gives ids the model lacks."""
    largest, vocab_size = prompt_ids(tokenizer).max().item(), source.config.vocab_size
    if largest >= vocab_size:  # pyright: ignore[reportOperatorIssue]
        raise TokenizerError(
            f"the tokenizer in {source.directory} gives the id {largest}, and the model has {vocab_size} rows; "
            "take both from one checkpoint"
        )


def _converted_config(source: Checkpoint, settings: ModuleSettings, dtype: str | None) -> HeliumConfig:
    paths = [path for path, _ in layout.weight_shapes(source.config, source.architecture)]
    quantized = any(settings(path) is not None for path in paths)
    # Code that the source names is not carried on: it was not copied, and is not to be run.
    extra = {key: value for key, value in source.config.extra.items() if key not in CODE_KEYS}
    config = replace(
        source.config,
        dtype=dtype or source.dtype,
        quantization=config_entry(settings, paths) if quantized else None,
        extra=extra | {"architectures": [architecture_name(source.config, source.architecture)]},
    )
    if config.eos_token_id is None:
        # Swift loaders read it from config.json only.
        config.eos_token_id = GenerationConfig.of_directory(source.directory, config).eos_token_id
    return config


def _tensor_plans(
    config: HeliumConfig, settings_of: ModuleSettings, architecture: layout.Architecture
) -> dict[str, TensorPlan]:
    """Return dtype and shape of every tensor of the result, by its name on disk, in the order of the forward pass."""
    plans: dict[str, TensorPlan] = {}
    for name, shape in layout.tensor_shapes(config, settings_of, architecture):
        path, _, suffix = name.rpartition(".")
        settings = settings_of(path)
        integers = None if settings is None else settings.integer_dtype(suffix)
        dtype = getattr(mx, str(config.dtype)) if integers is None else MLX_DTYPES[integers]
        plans[layout.name_on_disk(name, architecture)] = (dtype, shape)
    return plans
