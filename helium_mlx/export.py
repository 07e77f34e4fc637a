"""The command `export`: a checkpoint as a bundle without Python. `python -m helium_mlx.export --help`."""

import sys
from dataclasses import asdict

from helium_mlx.checkpoint.config import DTYPES
from helium_mlx.json_writer import to_json
from helium_mlx.progress import Progress, note
from helium_mlx.terminal import CommandParser, add_repository_options, written_place


def build_parser() -> CommandParser:
    """Return the parser; option names are those of `helium_mlx.export`."""
    parser = CommandParser(
        "export",
        "Export a checkpoint as a bundle that C++ and Swift can run, on the backend at hand.",
        examples={
            "--model helium-2b-4bit --output helium-bundle": "a bundle for the whole context",
            "--model demo --output demo-bundle --context 512": "a smaller one, of the demo",
        },
    )
    parser.add_argument("--model", required=True, help="checkpoint directory, Hub repository or 'demo'")
    parser.add_argument("--output", type=written_place, required=True, help="directory to write")
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
    return build_parser().run(argv, _export)


def _export(*, json: bool, **options: object) -> None:
    from helium_mlx.bundle.exporting import export

    report = export(
        **options,  # pyright: ignore[reportArgumentType]
        on_progress=Progress("Running the model"),
        on_verification=Progress("Verifying"),
    )
    if json:
        print(to_json(asdict(report), indent=2))
    checked = "not verified" if report.error is None else f"verified with {report.vectors} prompts"
    note(
        f"{report.output}: {report.functions} functions for {report.backend}, a context of {report.context}, "
        f"{report.total_bytes / 1e6:.1f} MB, {checked}, in {report.seconds:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
