"""The command `convert`: Hugging Face weights to MLX, and back. `python -m helium_mlx.convert --help`."""

import sys
import textwrap
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path

from helium_mlx.checkpoint.config import DTYPES, HeliumConfig
from helium_mlx.checkpoint.quantization_settings import MODES
from helium_mlx.errors import HeliumError, UsageError
from helium_mlx.model_card.record import CARD_FILE
from helium_mlx.progress import Progress, note
from helium_mlx.quantization.recipes import RECIPES, bits_per_weight, bytes_on_disk, recipe_settings
from helium_mlx.quantization.rounding import ROUNDINGS
from helium_mlx.table import WIDTH
from helium_mlx.terminal import CommandParser, add_repository_options, flags_of, with_flags, written_place


def build_parser() -> CommandParser:
    """Return the parser; option names are those of `helium_mlx.convert`."""
    parser = CommandParser(
        "convert",
        "Convert Hugging Face weights to MLX, and back.",
        examples={
            "--hf-path kyutai/helium-1-preview-2b --mlx-path helium-2b-4bit -q": "the 2B preview at 4 bits",
            "--hf-path helium-2b-4bit --mlx-path helium-2b-hf --to hf -d": "back, for transformers",
        },
        details=_recipes,
        instead={"--trust-remote-code": "no code of a checkpoint is ever run; leave it out"},
    )
    parser.add_argument("--hf-path", "--model", required=True, help="checkpoint directory, Hub repository or 'demo'")
    parser.add_argument(
        "--mlx-path", type=written_place, default="mlx_model", help="directory to write (default: %(default)s)"
    )
    add_repository_options(parser)
    parser.add_argument("--quantize", "-q", action="store_true", help="quantize the weights")
    parser.add_argument("--q-bits", type=int, help="bits a weight: 2, 3, 4, 5, 6 or 8 (default: 4)")
    parser.add_argument("--q-group-size", type=int, help="weights that share a scale: 32, 64 or 128 (default: 64)")
    parser.add_argument("--q-mode", choices=tuple(MODES), help="format of the weights (default: affine)")
    parser.add_argument(
        "--recipe", "--quant-predicate", metavar="NAME", help=f"quantize, with bits by module: {', '.join(RECIPES)}"
    )
    parser.add_argument(
        "--target-bpw", type=float, metavar="X",
        help="quantize to X bits per weight, measured out module by module; it says how long that takes",
    )  # fmt: skip
    parser.add_argument(
        "--rounding",
        choices=ROUNDINGS,
        default="nearest",
        help="how weights are rounded: nearest (default), fitted scales and biases, or gptq, which is best and slowest "
        "(minutes to hours for 2 billion weights; both say how long)",
    )
    parser.add_argument(
        "--calibration-text", metavar="FILE", help="text for the last two (default: the package's, in six languages)"
    )
    parser.add_argument("--dequantize", "-d", action="store_true", help="undo a quantization")
    parser.add_argument(
        "--dtype", choices=DTYPES,
        help="dtype of what is not quantized (default: the source's; float16 is faster than bfloat16 on an M1 or M2)",
    )  # fmt: skip
    parser.add_argument(
        "--to", choices=("mlx", "hf"), default="mlx", help="what the result is for: mlx (default), or hf: transformers"
    )
    parser.add_argument("--max-shard-size", metavar="SIZE", help="cut weight files at, say, 2GB (default: 5GB)")
    parser.add_argument(
        "--measure", action="store_true", help="compare the result with its source, and put the table into its card"
    )
    parser.add_argument("--upload-repo", metavar="USER/NAME", help="publish the result there, on the Hugging Face Hub")
    parser.add_argument("--overwrite", action="store_true", help="replace the directory if it is there already")
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="do not compare what was written with the source"
    )
    return parser


def _recipes() -> str:
    preview = HeliumConfig()
    lines = ["", "recipes, as fast as -q, and what Helium-1 preview takes (2.2 billion weights):"]
    for name, recipe in RECIPES.items():
        settings = recipe_settings(name, preview)
        size = bytes_on_disk(preview, settings) / 1e9
        lines.append(f"  {name:<12} {bits_per_weight(preview, settings):.2f} bits a weight, {size:.2f} GB")
        lines += textwrap.wrap(recipe.description, WIDTH, initial_indent=" " * 15, subsequent_indent=" " * 15)
    return "\n".join([*lines, ""])


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build_parser()
    # As errors about a quantization call them, be it asked for or a checkpoint's own.
    flags = {**flags_of(parser), "bits": "--q-bits", "group_size": "--q-group-size"}
    return parser.run(argv, partial(_convert, flags), flags)


def _convert(flags: Mapping[str, str], **options: object) -> None:
    from helium_mlx.conversion.conversion import convert

    _require_usable(options)
    report = convert(
        **options,  # pyright: ignore[reportArgumentType]
        on_progress=Progress("Converting"),
        on_allocation=Progress("Measuring modules"),
        on_verification=Progress("Verifying"),
        on_comparison=Progress("Comparing"),
        on_upload=Progress("Uploading", unit="B") if options["upload_repo"] else None,
        on_forecast=note,
    )
    for warning in report.warnings:
        print(f"warning: {with_flags(warning, flags)}", file=sys.stderr)
    if report.calibration is not None:
        note(report.calibration.summary)
    note(
        f"{report.mlx_path}: {report.total_bytes / 1e6:.1f} MB of weights, {report.bits_per_weight:.2f} bits each, "
        f"{'verified' if report.verification else 'not verified'}, in {report.seconds:.1f} s and "
        f"{report.peak_resident_memory / 1e6:.0f} MB of memory"
    )
    if options["measure"]:
        note(f"compared with its source: the table is in {Path(report.mlx_path) / CARD_FILE}")
    if options["upload_repo"]:
        note(f"published as {options['upload_repo']}")


def _require_usable(options: dict[str, object]) -> None:
    """Raise UsageError, before any checkpoint is looked at, for options that no checkpoint could be converted with."""
    from helium_mlx.conversion.options import ConversionOptions

    shaping = {field.name: options[field.name] for field in fields(ConversionOptions)}
    try:
        ConversionOptions(**shaping)  # pyright: ignore[reportArgumentType]
    except HeliumError as error:
        raise UsageError(str(error).removeprefix("quantization ")) from None


if __name__ == "__main__":
    sys.exit(main())
