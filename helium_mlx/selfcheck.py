"""The command `selfcheck`: proves this machine's MLX backend against stored outputs of transformers, without torch.

Runs the cases of `diagnostics/selfcheck_cases.py` through checkpoints on disk, as a user's model would run, and
compares with `selfcheck_reference.safetensors`, which `tests/reference/make_selfcheck_reference.py` writes. An error is
max |result - reference| / max |reference|. The parity grid (`tests/parity/grid.py`) prints with `table`.
"""

import os
import sys
import time
from dataclasses import asdict
from importlib.metadata import version

import mlx.core as mx

from helium_mlx.diagnostics.selfcheck_runs import Feature, by_feature, limits, most_failing, stored_half
from helium_mlx.errors import HeliumError
from helium_mlx.json_writer import to_json
from helium_mlx.progress import note
from helium_mlx.terminal import CommandParser


def table(features: list[Feature]) -> str:
    """Return the table that is printed."""
    width = max(len(feature.feature) for feature in features)
    lines = [f"{'feature':<{width}}  compared   float32  bfloat16  verdict"]
    for f in features:
        verdict = "ok" if not f.failed else f"FAIL ({f.failed} of {f.comparisons}; worst in {f.where})"
        errors = f"{_shown(f.worst_float32):>8}  {_shown(f.worst_bfloat16):>8}"
        lines.append(f"{f.feature:<{width}}  {f.comparisons:>8}  {errors}  {verdict}")
    return "\n".join(lines)


def _shown(error: float | None) -> str:
    return "-" if error is None else f"{error:.1e}"


def build_parser() -> CommandParser:
    """Return the parser."""
    parser = CommandParser(
        "selfcheck",
        "Compare MLX on this machine with stored outputs of transformers; exit status 1 if they differ.",
        examples={"": "every feature, in a table", "--json": "the same for programs"},
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    # Otherwise MLX rounds float32 products to TF32 on CUDA and on Apple's M5, and no kernel could be told from a wrong
    # one. It is read when the first product runs; a value that the user has set stays.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
    return build_parser().run(argv, _selfcheck)


def _selfcheck(*, json: bool) -> None:
    start = time.perf_counter()
    features = by_feature(stored_half())
    seconds = time.perf_counter() - start
    failed = [feature for feature in features if feature.failed]
    bounds = ", ".join(f"{name} {bound:g}" for name, bound in limits().items())
    _print_json(features, seconds) if json else print(table(features))
    note(f"{_device()}, MLX {version('mlx')}: {len(features) - len(failed)} of {len(features)} features within bounds "
          f"({bounds}), {seconds:.1f} s")  # fmt: skip
    if failed:
        named = most_failing(features)
        raise HeliumError(f"{len(failed)} features differ from transformers, most of all: {', '.join(named)}")


def _print_json(features: list[Feature], seconds: float) -> None:
    report = {
        "device": _device(),
        "mlx": version("mlx"),
        "seconds": seconds,
        "limits": limits(),
        "passed": not any(feature.failed for feature in features),
        "features": [asdict(feature) for feature in features],
    }
    print(to_json(report, indent=2))


def _device() -> str:
    return str(mx.default_device()).removeprefix("Device(").partition(",")[0]


if __name__ == "__main__":
    sys.exit(main())
