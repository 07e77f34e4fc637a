"""`convert`: any Helium checkpoint in, a self-contained directory out: for MLX, quantized or not, or for transformers.

Tensors are read, converted and written some rows at a time; the model is never built. The directory is written beside
its destination, verified, and renamed, so that it is there whole or not at all. Names and shapes on disk are
transformers' (see `checkpoint/layout.py`), and mlx-lm and mlx-swift-lm open the result.
"""

import hashlib
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.checkpoint import Checkpoint, open_checkpoint
from helium_mlx.checkpoint.weight_files import open_weights
from helium_mlx.comparison.comparison import compare
from helium_mlx.conversion.options import ConversionOptions
from helium_mlx.conversion.plan import ConversionPlan, plan_conversion
from helium_mlx.conversion.replaceable import foreign
from helium_mlx.conversion.verification import NOTE, Expected
from helium_mlx.conversion.verification import verify as compare_with_source
from helium_mlx.errors import CheckpointError, HeliumError, TokenizerError
from helium_mlx.files.atomic import new_directory, require_free, write_json
from helium_mlx.files.hashes import file_hashes, hashing
from helium_mlx.files.hub import resolve, root_of
from helium_mlx.files.hub_cache import snapshot_of
from helium_mlx.files.local_paths import published, without_local_paths
from helium_mlx.files.names import relative_name
from helium_mlx.files.safetensors_header import FLOAT_DTYPES
from helium_mlx.model_card.card import CardFacts, interoperability_warnings, model_card
from helium_mlx.model_card.quality import update_card
from helium_mlx.model_card.record import CARD_FILE, CONVERSION_FILE
from helium_mlx.model_card.source import GEMMA_NOTICE_HASH, NOTICE_FILE, copy_licences, needs_notice
from helium_mlx.option_values import OnProgress
from helium_mlx.process import peak_resident_memory, require_not_forked
from helium_mlx.publishing.upload import publish, require_ready
from helium_mlx.quantization.calibrated_rounding import RoundingOutcome, rounded_rows
from helium_mlx.quantization.calibration import CalibrationReport, Windows
from helium_mlx.quantization.forecast import OnForecast, told_in_words
from helium_mlx.quantization.plain import converted_rows
from helium_mlx.table import Table, short_repr
from helium_mlx.tokenizer.tokenizer import JSON_FILE
from helium_mlx.version import __version__


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did: also the contents of `conversion.json`, the directory aside.

    `files` and `source_files` map names to SHA-256; `total_bytes` counts the weight files' tensors; `seconds` is wall
    time; `peak_memory` is MLX's, `peak_resident_memory` the process's since it began, in bytes. `verification` maps
    each check to its figure, and is None where none was wanted; `calibration` says what a run over text chose, cost and
    brought, where there was one; `warnings` say what of the source was ignored, and
    where another program would not read the result as we do.
    """

    mlx_path: str
    source: str
    revision: str | None
    subfolder: str | None
    source_files: dict[str, str]
    files: dict[str, str]
    options: dict[str, object]
    dtype: str
    quantization: dict[str, object] | None
    parameters: int
    bits_per_weight: float
    total_bytes: int
    seconds: float
    peak_memory: int
    peak_resident_memory: int
    versions: dict[str, str]
    verification: dict[str, object] | None
    calibration: CalibrationReport | None
    warnings: list[str]

    def __repr__(self) -> str:
        return short_repr(
            self,
            mlx_path=self.mlx_path,
            bits_per_weight=self.bits_per_weight,
            total_bytes=self.total_bytes,
            verified=self.verification is not None,
            warnings=len(self.warnings),
        )

    def _repr_html_(self) -> str:
        columns = [("weights", "MB"), ("bits", "a weight"), ("verified", ""), ("warnings", ""), ("time", "s")]
        row = [
            self.mlx_path,
            f"{self.total_bytes / 1e6:,.1f}",
            f"{self.bits_per_weight:.2f}",
            "no" if self.verification is None else "yes",
            f"{len(self.warnings)}",
            f"{self.seconds:.1f}",
        ]
        return Table("directory", columns, [row]).html(f"converted from {self.source}")


def convert(
    hf_path: str,
    mlx_path: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    quantize: bool = False,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str | None = None,
    recipe: str | None = None,
    target_bpw: float | None = None,
    rounding: str = "nearest",
    calibration_text: str | None = None,
    dequantize: bool = False,
    dtype: str | None = None,
    to: str = "mlx",
    overwrite: bool = False,
    verify: bool = True,
    max_shard_size: int | str | None = None,
    measure: bool = False,
    upload_repo: str | None = None,
    on_progress: OnProgress | None = None,
    on_allocation: OnProgress | None = None,
    on_verification: OnProgress | None = None,
    on_comparison: OnProgress | None = None,
    on_upload: OnProgress | None = None,
    on_forecast: Callable[[str], None] | None = None,
) -> ConversionReport:
    """Convert a checkpoint (directory, Hub repository, or "demo") into the directory `mlx_path`.

    `revision` is a branch, tag or commit of the repository, `subfolder` a folder inside it or the directory.

    `quantize` gives `q_bits` = 4 bits in groups of `q_group_size` = 64, `q_mode` "affine"; the modes mxfp4, mxfp8 and
    nvfp4 have one width and group size each. `recipe` mixes bits by module instead (see `quantization/recipes.py`);
    `target_bpw` chooses bits and group size of each module so that the result takes at most so many bits per weight
    (see `quantization/bit_allocation.py`). `rounding` "fitted" or "gptq" errs less than "nearest", which is
    `mx.quantize`, in files of the same form and size (see `quantization/calibrated_rounding.py`). These two run a
    causal LM over `calibration_text`, a file, or the package's own text. `dequantize` undoes a quantization. `dtype`
    (bfloat16, float16, float32) is what the other tensors, scales and biases are stored in; None keeps the source's.
    `to` "hf" writes what transformers reads, dequantized if need be. Weight files are cut at `max_shard_size`, a number
    of bytes or text such as "2GB", 5 GB by default.

    An existing `mlx_path` is refused, or with `overwrite` replaced once the new one is complete. `verify` opens what
    was written and compares it with the source before that (see `conversion/verification.py`). `on_progress(done,
    total)` counts bytes written, `on_allocation(done, total)` products that measure modules for
    `target_bpw`, `on_verification(done, total)` blocks of rows that were looked through. `on_forecast(sentence)` is
    told how long choosing bits will take, and calibrated rounding, once the first layer is done.

    `measure` compares the result with its source (see `comparison/comparison.py`; minutes for 2 billion parameters) and
    writes the table into the card; `on_comparison(done, total)` counts tokens then. `upload_repo` is the Hub's
    repository to publish the result in afterwards (see `publishing/upload.py`); `on_upload(done, total)` counts bytes
    then. The directory is kept if that fails.

    Raises CheckpointError, ConfigError, QuantizationError or TokenizerError; nothing is left behind then. Raises
    UploadError for an upload that is bound to fail, before any work, or that failed.
    """
    require_not_forked("convert there")
    if upload_repo is not None:
        require_ready(upload_repo, verify=verify)
    options = ConversionOptions(
        quantize, q_bits, q_group_size, q_mode, recipe, dequantize, dtype, to, max_shard_size, rounding, target_bpw,
        calibration_text,
    )  # fmt: skip
    start = time.perf_counter()
    mx.reset_peak_memory()
    destination = Path(mlx_path)
    _require_other(destination, Path(hf_path))
    require_free(destination, replace=overwrite, foreign=foreign)
    source = open_checkpoint(
        resolve(hf_path, revision=revision, subfolder=subfolder, documents=True), architecture=None
    )
    _require_other(destination, source.directory)
    if measure and source.architecture != "ForCausalLM":
        raise CheckpointError(f"{hf_path} is no causal LM, and only those can be measured; drop measure=True")
    root = root_of(source.directory, hf_path, subfolder)
    plan = plan_conversion(source, options, on_allocation, root=root, on_forecast=on_forecast)
    config = plan.config

    # The source is hashed while its tensors are converted, which reads the same bytes.
    with (
        new_directory(destination, replace=overwrite, foreign=foreign) as directory,
        hashing(plan.source_files, within=source.directory) as source_hashes,
    ):
        _require_space(directory, plan.total_bytes, destination)
        _write_configs(plan, directory, destination)
        calibration = _write_weights(plan, directory, on_progress, on_forecast)
        files = file_hashes(_files_of(directory), within=directory)
        figures = None
        if verify:
            is_plain = calibration is None or calibration.is_plain
            expected = _expected(plan, files, source_hashes(), is_plain=is_plain)
            figures = _verified(directory, source, expected, destination, on_verification)
        facts = CardFacts(
            name=destination.name,
            source=_source_name(hf_path, subfolder, source.directory),
            revision=_commit(source.directory),
            recipe=recipe,
            bits_per_weight=round(8 * plan.total_bytes / plan.parameters, 3),
            for_transformers=to == "hf",
            architecture=source.architecture,
            warnings=_warnings(plan, figures, calibration),
            total_bytes=plan.total_bytes,
            source_files=source_hashes(),
            target_bpw=target_bpw,
            rounding="nearest" if calibration is None or calibration.is_plain else plan.options.rounding_kind,
            dequantized_from=source.config.quantization if source.is_quantized else None,
        )
        local = (source.directory, destination)
        card = str(without_local_paths(model_card(facts, source.directory, config, source_root=plan.root), *local))
        # "replace": a name that is not UTF-8 may be in it.
        (directory / CARD_FILE).write_text(card, encoding="utf-8", errors="replace")
        report = ConversionReport(
            mlx_path=str(destination),
            source=facts.source.partition(":")[0] if facts.revision else facts.source,
            revision=facts.revision,
            subfolder=_subfolder(source.directory),
            source_files=source_hashes(),
            files=files | file_hashes([directory / CARD_FILE]),
            options=options.given() | {"verify": verify, "overwrite": overwrite},
            dtype=str(config.dtype),
            quantization=config.quantization,
            parameters=plan.parameters,
            bits_per_weight=facts.bits_per_weight,
            total_bytes=plan.total_bytes,
            seconds=round(time.perf_counter() - start, 3),
            peak_memory=mx.get_peak_memory(),
            peak_resident_memory=peak_resident_memory(),
            versions={"helium_mlx": __version__, "mlx": version("mlx"), "python": platform.python_version()},
            verification=figures,
            calibration=calibration,
            warnings=list(facts.warnings),
        )
        record = {name: value for name, value in asdict(report).items() if name != "mlx_path"}
        write_json(directory / CONVERSION_FILE, published(record, *local))
    if measure:
        report = _measured(report, source, on_comparison)
    if upload_repo is not None:
        publish(destination, upload_repo, on_progress=on_upload)
    return report


def _measured(report: ConversionReport, source: Checkpoint, on_progress: OnProgress | None) -> ConversionReport:
    """Compare a conversion with its source, and write what was found into its card; return the report anew."""
    destination = Path(report.mlx_path)
    comparison = compare(source.directory, destination, on_progress=on_progress)
    update_card(destination, comparison, reference=report.source if report.revision else None)
    return replace(report, files=report.files | file_hashes([destination / CARD_FILE]))


def _require_other(destination: Path, source: Path) -> None:
    if destination.is_dir() and destination.resolve() == source.resolve():
        raise CheckpointError(f"{destination} is the source itself; write to another directory")


def _require_space(directory: Path, total_bytes: int, destination: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < total_bytes:
        raise CheckpointError(
            f"{destination}: the weights take {total_bytes / 1e9:.3f} GB, and {free / 1e9:.3f} GB are free there; "
            "make room, or choose another place"
        )


def _write_configs(plan: ConversionPlan, directory: Path, destination: Path) -> None:
    try:
        plan.tokenizer.save_pretrained(directory)
    except TokenizerError as error:
        # What is named is the directory that the user knows.
        raise TokenizerError(str(error).replace(str(directory), str(destination))) from None
    for path in plan.copies:
        target = directory / relative_name(path, plan.source.directory)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    for name, values in plan.json_files.items():
        write_json(directory / name, values)
    copy_licences(plan.source.directory, plan.source.config, directory, plan.root)


def _files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _write_weights(
    plan: ConversionPlan, directory: Path, on_progress: OnProgress | None, on_forecast: Callable[[str], None] | None
) -> CalibrationReport | None:
    """Write the weight files; return what calibration has to say, where there was any."""
    options, windows = plan.options, plan.windows
    if windows is None:
        _write_rows(plan, directory, converted_rows(plan.source, plan.settings, plan.dtype), on_progress)
        return None
    start, outcome, kept = time.perf_counter(), RoundingOutcome(), options.rounding_kind
    if kept != "nearest":
        on_seconds = told_in_words(on_forecast, "Rounding", plan.parameters)
        _write_rows(plan, directory, _calibrated_rows(plan, windows, outcome, on_seconds), on_progress)
    if kept == "nearest" or not outcome.is_better:
        kept = "nearest"
        _write_rows(plan, directory, converted_rows(plan.source, plan.settings, plan.dtype), on_progress)
    seconds = time.perf_counter() - start
    allocation = plan.allocation
    both = seconds + (allocation.seconds if allocation else 0.0)
    is_measured = options.rounding != "nearest"
    return CalibrationReport(
        text=options.calibration_text or "helium_mlx",
        fitted_tokens=windows.fitted_tokens,
        held_out_tokens=windows.held_out_tokens,
        rounding=kept,
        plain_kl=outcome.plain_kl if is_measured else None,
        kl=outcome.kl if is_measured else None,
        plain_modules=outcome.kept_plain,
        sensitivities=dict(allocation.sensitivities) if allocation else {},
        allocation_seconds=allocation.seconds if allocation else 0.0,
        rounding_seconds=round(seconds, 3),
        seconds_per_billion_weights=round(both / plan.parameters * 1e9, 1),
        peak_memory=mx.get_peak_memory(),
    )


def _calibrated_rows(
    plan: ConversionPlan, windows: Windows, outcome: RoundingOutcome, on_forecast: OnForecast | None
) -> Iterator[tuple[str, int, mx.array]]:
    def is_kept(name: str) -> bool:
        path, _, suffix = name.rpartition(".")
        return suffix != "weight" or plan.settings(path) is None

    yield from converted_rows(plan.source, plan.settings, plan.dtype, is_wanted=is_kept)
    yield from rounded_rows(
        plan.source,
        plan.settings,
        plan.dtype,
        rounding=plan.options.rounding_kind,
        windows=windows,
        outcome=outcome,
        on_forecast=on_forecast,
    )


def _write_rows(
    plan: ConversionPlan,
    directory: Path,
    rows_by_name: Iterator[tuple[str, int, mx.array]],
    on_progress: OnProgress | None,
) -> None:
    total, done, architecture = plan.total_bytes, 0, plan.source.architecture
    metadata_format = "pt" if plan.options.to == "hf" else "mlx"
    limit = plan.options.max_shard_bytes
    with open_weights(directory, plan.tensors, max_shard_bytes=limit, metadata_format=metadata_format) as writers:
        for name, first_row, rows in rows_by_name:
            name_on_disk = layout.name_on_disk(name, architecture)
            writers[name_on_disk].write(name_on_disk, rows, first_row=first_row)
            done += rows.nbytes
            if on_progress:
                on_progress(done, total)


def _expected(plan: ConversionPlan, files: dict[str, str], source_files: dict[str, str], *, is_plain: bool) -> Expected:
    copied = [*plan.tokenizer.files, *plan.copies, *plan.licences]
    names = [relative_name(path, plan.source.directory) for path in copied]
    copies = {name: source_files[name] for name in names if name not in plan.json_files}
    copies |= {name: hashlib.sha256(data).hexdigest() for name, data in plan.templates.items()}
    if needs_notice(plan.source.directory, plan.source.config, plan.root):
        copies[NOTICE_FILE] = GEMMA_NOTICE_HASH
    return Expected(plan.tensors, plan.settings, plan.dtype, plan.json_files, copies, files, is_plain)


def _verified(
    directory: Path, source: Checkpoint, expected: Expected, destination: Path, on_progress: OnProgress | None
) -> dict[str, object]:
    try:
        return compare_with_source(directory, source, expected, on_progress=on_progress)
    except HeliumError as error:
        said = str(error).replace(f"{directory}/", "").replace(str(directory), "the result")
        raise CheckpointError(f"{destination}: verification failed, so nothing is kept: {said}") from None


def _warnings(
    plan: ConversionPlan, figures: dict[str, object] | None, calibration: CalibrationReport | None
) -> list[str]:
    source, config = plan.source, plan.config
    warnings = [*source.warnings, *plan.warnings]
    others = {FLOAT_DTYPES[info.dtype] for info in source.tensors.values() if info.dtype in FLOAT_DTYPES}
    if plan.options.dtype is None and len(others) > 1:
        warnings.append(
            f"the source has tensors in {' and '.join(sorted(others))}; all are in {config.dtype} now, dtype=..."
            " picks another"
        )
    if calibration is not None and calibration.was_dropped:
        warnings.append(
            f"rounding {plan.options.rounding} was further from the source than plain rounding on held-out text (KL "
            f"divergence {calibration.kl:.5f}, plain {calibration.plain_kl:.5f}), so that plain rounding was kept"
        )
    if plan.options.to == "mlx":
        warnings += interoperability_warnings(config, source.architecture)
        if JSON_FILE not in (path.name for path in plan.tokenizer.files):
            warnings.append(f"there is no {JSON_FILE}, without which mlx-lm and mlx-swift-lm cannot open it")
    logits = (figures or {}).get("logits")
    if isinstance(logits, dict) and NOTE in logits:
        warnings.append(str(logits[NOTE]))
    return warnings


def _commit(directory: Path) -> str | None:
    """Return the commit of a directory inside the Hub's cache, which names snapshots by it."""
    snapshot = snapshot_of(directory)
    return snapshot.commit if snapshot else None


def _source_name(hf_path: str | Path, subfolder: str | None, directory: Path) -> str:
    """Return what names the source again: the repository with its subfolder, or the directory."""
    snapshot, inside = snapshot_of(directory), _subfolder(directory)
    if snapshot is None:
        return str(Path(hf_path, subfolder)) if subfolder else str(hf_path)
    return f"{snapshot.repo}:{inside}" if inside else snapshot.repo


def _subfolder(directory: Path) -> str | None:
    """Return where in its repository a directory of the Hub's cache lies; None for its top."""
    snapshot = snapshot_of(directory)
    return directory.relative_to(snapshot.root).as_posix() if snapshot and directory != snapshot.root else None
