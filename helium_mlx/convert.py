"""The command `convert`: Hugging Face weights to MLX, and back. `python -m helium_mlx.convert --help`."""

import argparse
import sys
from dataclasses import fields

from helium_mlx.checkpoint.config import DTYPES
from helium_mlx.checkpoint.quantization_settings import MODES
from helium_mlx.errors import HeliumError, UsageError
from helium_mlx.quantization.recipes import RECIPES
from helium_mlx.quantization.rounding import ROUNDINGS
from helium_mlx.terminal import Progress, add_repository_options, flags_of, run_command


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; option names are those of `helium_mlx.convert`."""
    parser = argparse.ArgumentParser(
        prog="helium-mlx convert", description="Convert Hugging Face weights to MLX, and back."
    )
    parser.add_argument("--hf-path", required=True, help="checkpoint directory, Hub repository or 'demo'")
    parser.add_argument("--mlx-path", default="mlx_model", help="directory to write (default: %(default)s)")
    add_repository_options(parser)
    parser.add_argument("--quantize", "-q", action="store_true", help="quantize the weights")
    parser.add_argument("--q-bits", type=int, help="bits a weight: 2, 3, 4, 5, 6 or 8 (default: 4)")
    parser.add_argument("--q-group-size", type=int, help="weights that share a scale: 32, 64 or 128 (default: 64)")
    parser.add_argument("--q-mode", choices=tuple(MODES), help="format of the weights (default: affine)")
    parser.add_argument("--recipe", metavar="NAME", help=f"quantize, with bits by module: {', '.join(RECIPES)}")
    parser.add_argument(
        "--target-bpw", type=float, metavar="X", help="quantize to X bits per weight, measured out module by module"
    )
    parser.add_argument(
        "--rounding",
        choices=ROUNDINGS,
        default="nearest",
        help="how weights are rounded: nearest (default), fitted scales and biases, or gptq, which is best and slowest",
    )
    parser.add_argument(
        "--calibration-text", metavar="FILE", help="text for the last two (default: the package's, in six languages)"
    )
    parser.add_argument("--dequantize", "-d", action="store_true", help="undo a quantization")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of what is not quantized (default: the source's)")
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


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build_parser()
    options = vars(parser.parse_args(argv))
    # As errors about a quantization call them, be it asked for or a checkpoint's own.
    flags = {**flags_of(parser), "bits": "--q-bits", "group_size": "--q-group-size"}
    return run_command(lambda: _convert(**options), flags)


def _convert(**options: object) -> None:
    from helium_mlx.conversion.conversion import convert
    from helium_mlx.publishing.progress import upload_progress

    _require_usable(options)
    report = convert(
        **options,  # pyright: ignore[reportArgumentType]
        on_progress=Progress("Converting"),
        on_allocation=Progress("Measuring modules"),
        on_verification=Progress("Verifying"),
        on_comparison=Progress("Comparing"),
        on_upload=upload_progress() if options["upload_repo"] else None,
    )
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if report.calibration is not None:
        print(report.calibration.summary, file=sys.stderr)
    print(
        f"{report.mlx_path}: {report.total_bytes / 1e6:.1f} MB of weights, {report.bits_per_weight:.2f} bits each, "
        f"{'verified' if report.verification else 'not verified'}, in {report.seconds:.1f} s and "
        f"{report.peak_resident_memory / 1e6:.0f} MB of memory",
        file=sys.stderr,
    )
    if options["upload_repo"]:
        print(f"published as {options['upload_repo']}", file=sys.stderr)


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
