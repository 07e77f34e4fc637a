"""The command `export`: a checkpoint as a bundle without Python. `python -m helium_mlx.export --help`."""

import argparse
import sys
from dataclasses import asdict

from helium_mlx.checkpoint.config import DTYPES
from helium_mlx.json_writer import to_json
from helium_mlx.terminal import Progress, add_repository_options, flags_of, run_command


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; option names are those of `helium_mlx.export`."""
    parser = argparse.ArgumentParser(
        prog="helium-mlx export",
        description="Export a checkpoint as a bundle that C++ and Swift can run, on the backend at hand.",
    )
    parser.add_argument("--model", required=True, help="checkpoint directory, Hub repository or 'demo'")
    parser.add_argument("--output", required=True, help="directory to write")
    parser.add_argument(
        "--context", type=int, help="tokens of prompt and completion together (default: as many as the model can)"
    )
    add_repository_options(parser)
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype to compute in (default: the checkpoint's; float32 if quantized, on CPUs)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle if it is there already")
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="do not run the bundle over its own vectors"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build_parser()
    options = vars(parser.parse_args(argv))
    as_json: bool = options.pop("json")
    return run_command(lambda: _export(as_json=as_json, **options), flags_of(parser))


def _export(*, as_json: bool, **options: object) -> None:
    from helium_mlx.bundle.exporting import export

    report = export(
        **options,  # pyright: ignore[reportArgumentType]
        on_progress=Progress("Running the model"),
        on_verification=Progress("Verifying"),
    )
    if as_json:
        print(to_json(asdict(report), indent=2))
    checked = "not verified" if report.error is None else f"verified with {report.vectors} prompts"
    print(
        f"{report.output}: {report.functions} functions for {report.backend}, a context of {report.context}, "
        f"{report.total_bytes / 1e6:.1f} MB, {checked}, in {report.seconds:.1f} s",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())
