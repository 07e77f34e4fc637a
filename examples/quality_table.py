"""Makes the table of quality against size: `python examples/quality_table.py --model demo`.

Converts a model in every way there is, measures each result with `compare` on the package's text, and prints two
tables in Markdown on standard output: bits per weight with scales and biases counted, and mean KL divergence from the
source, in nats a token, on stories (what the demo knows) and on prose (what it does not). `--json` writes the figures
to a file. Half an hour of CPU time on the demo with OpenBLAS in front, more with MLX's wheel alone.

mlx-lm's learned methods download their texts; here they are called as functions, with the calibration text of this
package. What does not accept the model is named on standard error, with the reason.
"""

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optimizers
from mlx_lm.convert import QUANT_RECIPES
from mlx_lm.convert import convert as lm_convert
from mlx_lm.quant.awq import AWQ_MODEL_CONFIGS
from mlx_lm.quant.dwq import dwq_quantize
from mlx_lm.quant.gptq import gptq_quantize
from mlx_lm.utils import load as lm_load
from mlx_lm.utils import quantize_model, save

from helium_mlx import HeliumTokenizer, convert
from helium_mlx.checkpoint.checkpoint import open_checkpoint
from helium_mlx.comparison.comparison import compare_all
from helium_mlx.comparison.text import KINDS, LANGUAGES, TEXTS_DIRECTORY, Document
from helium_mlx.files.hub import resolve
from helium_mlx.quantization.calibration import Windows, calibration_windows

WIDTHS = (2, 3, 4, 5, 6, 8)
LEARNED_UP_TO = 4
TARGETS = (2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0)
STORIES = "stories"

# mlx-lm's default, 1e-6, is meant for thousands of samples. On the demo, 1e-3 is worse than no learning at all.
DWQ_LEARNING_RATES = (1e-5, 1e-4)


@dataclass(frozen=True)
class Figures:
    """A row of the table: who made it and how, bits per weight, and mean KL on stories, on prose and on both."""

    method: str
    setting: str
    bits_per_weight: float
    stories_kl: float
    prose_kl: float
    kl: float


@dataclass(frozen=True)
class Made:
    """A converted directory, or the reason why there is none."""

    method: str
    setting: str
    path: Path | None
    reason: str = ""


def documents() -> list[Document]:
    """Return `compare`'s own texts, by kind in place of language."""
    return [
        Document(STORIES if kind == STORIES else "prose", text)
        for kind in KINDS
        for language in LANGUAGES
        for text in (TEXTS_DIRECTORY / kind / f"{language}.txt").read_text(encoding="utf-8").strip().split("\n\n")
    ]


def by_helium_mlx(source: Path, folder: Path, widths: Sequence[int], targets: Sequence[float]) -> Iterator[Made]:
    """Convert uniformly with each rounding, and to each target."""
    for rounding in ("nearest", "fitted", "gptq"):
        for bits in widths:
            path = folder / f"{rounding}-{bits}"
            convert(str(source), str(path), quantize=True, q_bits=bits, rounding=rounding, verify=False)
            method = "mx.quantize" if rounding == "nearest" else f"--rounding {rounding}"
            yield Made(method, f"{bits} bits", path)
    for target in targets:
        path = folder / f"target-{target}"
        convert(str(source), str(path), target_bpw=target, rounding="gptq", verify=False)
        yield Made("--target-bpw, gptq", f"{target:g}", path)


def mixed(source: Path, folder: Path) -> Iterator[Made]:
    """Convert with mlx-lm's recipes."""
    for recipe in QUANT_RECIPES:
        path = folder / recipe
        lm_convert(str(source), str(path), quantize=True, q_group_size=64, quant_predicate=recipe)
        yield Made("mlx-lm", recipe, path)


def learned(source: Path, folder: Path, windows: Windows, widths: Sequence[int]) -> Iterator[Made]:
    """Convert with mlx-lm's learned methods, as far as they accept the model."""
    for bits in widths:
        if bits > LEARNED_UP_TO:
            continue
        yield _attempt("mlx-lm GPTQ", bits, folder, lambda path, bits=bits: _lm_gptq(source, path, windows, bits))
        for rate in DWQ_LEARNING_RATES:
            yield _attempt(
                f"mlx-lm DWQ, rate {rate:g}", bits, folder,
                lambda path, bits=bits, rate=rate: _lm_dwq(source, path, windows, bits, rate),
            )  # fmt: skip
    model_type = open_checkpoint(source).config.model_type
    if model_type not in AWQ_MODEL_CONFIGS:
        known = ", ".join(AWQ_MODEL_CONFIGS)
        yield Made("mlx-lm AWQ", "", None, f"has no description of {model_type!r}, only of {known}")


def _attempt(method: str, bits: int, folder: Path, make: Callable[[Path], None]) -> Made:
    path = folder / f"{method.replace(' ', '-')}-{bits}"
    try:
        make(path)
    except (AssertionError, ValueError, NotImplementedError, AttributeError) as error:
        return Made(method, f"{bits} bits", None, str(error) or type(error).__name__)
    return Made(method, f"{bits} bits", path)


def _lm_gptq(source: Path, path: Path, windows: Windows, bits: int) -> None:
    model, tokenizer, config = lm_load(str(source), return_config=True)  # pyright: ignore
    # Its Hessians take rows of one length.
    length = max(window.shape[1] for window in windows.fitted)
    rows = mx.concatenate([window for window in windows.fitted if window.shape[1] == length])
    model, config["quantization"] = gptq_quantize(model, rows, bits, 64, bits, 64)
    save(str(path), str(source), model, tokenizer, config)


def _lm_dwq(source: Path, path: Path, windows: Windows, bits: int, learning_rate: float) -> None:
    model, tokenizer, config = lm_load(str(source), return_config=True)  # pyright: ignore
    # In float32, which MLX on a CPU multiplies faster by packed weights than bfloat16 (see `backend.py`).
    dtype = open_checkpoint(source).dtype
    model.set_dtype(mx.float32)
    student = copy.deepcopy(model)
    student, config = quantize_model(student, config, group_size=64, bits=bits)
    data = [(window[0].tolist(), 0) for window in windows.fitted]
    held_out = [(window[0].tolist(), 0) for window in windows.held_out]
    optimizer = optimizers.Adam(learning_rate=learning_rate, bias_correction=True)
    dwq_quantize(
        student, lambda batch, _, split: model(batch), optimizer, data, held_out,
        batch_size=4, max_seq_length=512, seed=0, dtype=mx.float32,
    )  # fmt: skip
    student.set_dtype(getattr(mx, dtype))
    save(str(path), str(source), student, tokenizer, config)


def measured(source: Path, made: list[Made]) -> Iterator[Figures]:
    """Yield the figures of each result that there is."""
    there = [each for each in made if each.path is not None]
    reports = compare_all(source, [each.path for each in there if each.path is not None], documents())
    for each, report in zip(there, reports, strict=True):
        kinds, bits = report.languages, round(report.candidate.bits_per_weight, 3)
        stories, prose, overall = kinds[STORIES].mean_kl, kinds["prose"].mean_kl, report.mean_kl
        assert stories is not None and prose is not None and overall is not None
        yield Figures(each.method, each.setting, bits, stories, prose, overall)


def tables(rows: list[Figures]) -> str:
    """Return two tables in Markdown: one width for all modules, by method, and widths that differ, by size."""
    uniform = [row for row in rows if row.setting.endswith(" bits")]
    methods = list(dict.fromkeys(row.method for row in uniform))
    lines = [f"| bits | a weight | {' | '.join(methods)} |", "|--|--|" + "--|" * len(methods)]
    for setting in dict.fromkeys(row.setting for row in uniform):
        own = {row.method: row for row in uniform if row.setting == setting}
        sizes = {f"{row.bits_per_weight:.2f}" for row in own.values()}
        cells = [_shown(own[method]) if method in own else "" for method in methods]
        lines.append(f"| {setting.removesuffix(' bits')} | {', '.join(sorted(sizes))} | {' | '.join(cells)} |")
    lines += ["", "| | | bits a weight | KL, stories / prose |", "|--|--|--|--|"]
    for row in sorted(set(rows) - set(uniform), key=lambda row: row.bits_per_weight):
        lines.append(f"| {row.method} | {row.setting} | {row.bits_per_weight:.2f} | {_shown(row)} |")
    return "\n".join(lines)


def _shown(row: Figures) -> str:
    return f"{row.stories_kl:.2g} / {row.prose_kl:.2g}"


def main(argv: list[str] | None = None) -> int:
    """Print the tables and return an exit status."""
    parser = argparse.ArgumentParser(description="Print quality against size: this package's conversions and mlx-lm's.")
    parser.add_argument("--model", default="demo", help="directory or Hub repository (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument("--bits", type=int, nargs="*", default=WIDTHS, metavar="N", help="widths for all modules")
    parser.add_argument("--targets", type=float, nargs="*", default=TARGETS, metavar="X", help="targets to deal out")
    options = parser.parse_args(argv)
    source = resolve(options.model)
    tokenizer = HeliumTokenizer.from_pretrained(source)
    windows = calibration_windows(tokenizer, open_checkpoint(source).config)
    with tempfile.TemporaryDirectory() as name, redirect_stdout(sys.stderr):
        folder = Path(name)
        made: list[Made] = []
        # As it is, transformers' config.json of today lacks what mlx-lm looks for.
        readable = folder / "source"
        convert(str(source), str(readable))
        ways = (
            by_helium_mlx(source, folder, options.bits, options.targets),
            mixed(readable, folder),
            learned(readable, folder, windows, options.bits),
        )
        for each in chain(*ways):
            print(f"{each.method} {each.setting}: {each.reason or 'made'}", file=sys.stderr, flush=True)
            made.append(each)
        rows = list(measured(source, made))
    print(tables(rows))
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
