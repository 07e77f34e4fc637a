"""Compares the figures of README and docs with what commands print today: `python examples/published_figures.py`.

What takes seconds is compared by default, as CI does; `--slow` adds what takes minutes, before a release. Where a page
prints something else, that is a line with file, line number and both; the exit status is then 1.

A figure is found by the words around it: what a command gives is written as the page writes it, and looked for with any
numbers in place of its own. Whole numbers and hashes have to be equal; a number with decimals may be off by some units
of its last digit where floating-point sums of another machine decide it. Speeds and times are never compared.
"""

import argparse
import difflib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import cast

from demo_stories import LANGUAGES, lexicons

from helium_mlx import HeliumConfig, HeliumError, HeliumTokenizer
from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.quantization_settings import QuantizationSettings
from helium_mlx.diagnostics.measures import PEAKS, Worker
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.quantization.calibration import calibration_windows
from helium_mlx.quantization.recipes import bits_per_weight
from helium_mlx.terminal import run_command

ROOT = Path(__file__).parent.parent

# The rows of the README's table of sizes, and the bits of the uniform rows of the table of quality.
README_PRECISIONS = ("bfloat16", "8 bits", "6 bits", "4 bits", "3 bits")
WIDTHS = (2, 3, 4, 5, 6, 8)

VALUE = re.compile(r"(?<![\w.])(?:[0-9a-f]{64}|\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?)(?!\w)")


@dataclass(frozen=True)
class Figure:
    """A passage as a page should have it, bold or not; decimals may be off by `slack` units of the last digit."""

    page: str
    text: str
    slack: int = 0


def difference(figure: Figure, page: str) -> str | None:
    """Return where and how the text of a page differs from a figure; None if it has it."""
    page, text = page.replace("**", ""), figure.text.replace("**", "")
    words, found = VALUE.split(text), VALUE.findall(text)
    printed = list(re.finditer(f"({VALUE.pattern})".join(map(re.escape, words)), page))
    if any(all(map(_fits, found, place.groups(), [figure.slack] * len(found))) for place in printed):
        return None
    # The same words around other numbers, or else the line that is most like it.
    passages, cutoff = ([place[0] for place in printed], 0.0) if printed else (page.splitlines(), 0.6)
    nearest = difflib.get_close_matches(text, passages, n=1, cutoff=cutoff)
    if not nearest:
        return f"{figure.page}: nowhere has {text!r}"
    line = page.count("\n", 0, page.index(nearest[0])) + 1
    return f"{figure.page}:{line}: printed {nearest[0]!r}, found {text!r}"


def _fits(found: str, printed: str, slack: int) -> bool:
    if found == printed or not re.search("[.-]", found + printed):
        return found == printed
    one, other = (Decimal(value.replace(",", "")) for value in (found, printed))
    last_digit = Decimal(1).scaleb(int(other.as_tuple().exponent))
    return abs(one - other) <= slack * last_digit


def printed_by(command: str, folder: Path = ROOT) -> list[str]:
    """Return the lines that a command prints, given as the pages name it, and run in a folder, without the Hub."""
    program, *arguments = shlex.split(command)
    words = ["-m", "helium_mlx", *arguments] if program == "helium-mlx" else [str(ROOT / arguments[0]), *arguments[1:]]
    run = subprocess.run(
        [sys.executable, *words], cwd=folder, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    if run.returncode:
        raise HeliumError(f"{command}: {run.stderr.strip() or run.stdout.strip()}")
    return run.stdout.splitlines()


def cells(lines: list[str]) -> list[list[str]]:
    """Return the cells of the rows of a Markdown table, without its heading."""
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and "| -- |" not in line][1:]


def row(*values: object) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(map(str, values))} |"


def sizes(_: Path) -> Iterator[Figure]:
    """Sizes by precision and by context."""
    gigabytes = {}
    for name, *values in cells(printed_by("python examples/precision_table.py")):
        name = name.partition(":")[0]
        yield Figure("docs/sizes.md", row(name, *values))
        gigabytes[name] = values
        if name in README_PRECISIONS:
            yield Figure("README.md", row(name, *values[1:3], *values[4:]))
    for values in cells(printed_by("python examples/memory_table.py")):
        yield Figure("docs/sizes.md", row(*values))
    shorter = cells(printed_by("python examples/precision_table.py --tokens 1024"))
    (memory,) = (float(values[2]) for name, *values in shorter if name == "4 bits")
    disk, full = (float(value) for value in gigabytes["4 bits"][1:3])
    yield Figure("README.md", f"It downloads {disk:.1f} GB once")
    yield Figure("README.md", f"{memory:.1f} GB of memory for a text of 1,024 tokens and {full:.1f} GB for 4,096")
    yield Figure("examples/menubar.md", f"The folder `model` ({disk:.1f} GB)")
    yield Figure("examples/menubar.md", f"`model` takes {disk:.1f} GB and a full context another {full - disk:.1f} GB")


def demo(pages: Path) -> Iterator[Figure]:
    """What the demo is, and what it tells."""
    record = json.loads((DEMO_DIRECTORY / "training.json").read_text(encoding="utf-8"))
    config = HeliumConfig.from_pretrained(DEMO_DIRECTORY)
    size, settings = (DEMO_DIRECTORY / "model.safetensors").stat().st_size, record["settings"]
    page, parameters = "docs/demo.md", f"{record['parameters'] / 1e6:.1f} million parameters"
    yield Figure("helium_mlx/demo/README.md", f"a Helium with {parameters}")
    shape = f"{config.num_hidden_layers} layers, width {config.hidden_size}"
    yield Figure(page, f"Helium of {parameters} ({shape}, {size / 1e6:.1f} MB in bfloat16)")
    words = lexicons().values()
    names = _counts(" ".join(each["people"].values()).split() for each in words)
    places, objects = (_counts(each[kind] for each in words) for kind in ("places", "objects"))
    yield Figure(page, f"the {names} names, {places} places and {objects} objects a language")
    losses = (f"{record['held_out_loss'][language]['nats_per_token']:.3f}" for language in LANGUAGES)
    yield Figure(page, row("loss, nats a token", *losses))
    for kind, name in (("names", "names kept in greedy continuations"), ("objects", "objects kept")):
        yield Figure(page, row(name, *(f"{100 * record['kept'][language][kind]:.0f} %" for language in LANGUAGES)))
    steps = f"{settings['steps']:,} steps, {record['tokens'] / 1e6:.1f} million tokens"
    yield Figure(page, f"seed {settings['seed']}, {steps}")
    yield from stories(pages)


def _counts(lists: Iterable[list[str]]) -> str:
    return " or ".join(map(str, sorted({len(each) for each in lists})))


def stories(pages: Path) -> Iterator[Figure]:
    """The demo's stories, as the pages have them: the passages that `…` parts have to follow one another."""
    for prompt, passage in re.findall(r"^> \*\*(.+?)\*\* (.+)$", _text(pages, "docs/demo.md"), re.MULTILINE):
        yield Figure("docs/demo.md", f"> {prompt} {_told(prompt, passage)}")
    shown = re.findall(r'--model demo --prompt "([^"]+)"\n```\n\n```\n(.+)\n```', _text(pages, "README.md"))
    for prompt, passage in shown:
        yield Figure("README.md", _told(prompt, passage))


def _told(prompt: str, passage: str) -> str:
    parts = [re.escape(part.strip()) for part in passage.split("…")]
    told = " ".join(_story(prompt).split())
    return passage if re.match(".*".join(parts), told) else told


@cache
def _story(prompt: str) -> str:
    # In bfloat16, words are as likely as others to the last bit, and each machine takes its own.
    command = f"helium-mlx generate --model demo --dtype float32 --prompt {shlex.quote(prompt)}"
    return "\n".join(printed_by(command))


def comparison(_: Path) -> Iterator[Figure]:
    """What `compare` prints of the demo at 4 bits, and `upload --dry-run`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        printed_by("helium-mlx convert --hf-path demo --mlx-path demo-4bit -q --overwrite", folder)
        for line in printed_by("helium-mlx compare --reference demo --candidate demo-4bit", folder):
            yield Figure("docs/compare.md", line, slack=5)
        for line in printed_by("helium-mlx upload --path demo-4bit --repo you/demo-4bit --dry-run", folder):
            if line.endswith(("README.md", "model.safetensors")):
                yield Figure("docs/publish.md", line)


def quantization(_: Path) -> Iterator[Figure]:
    """Bits a weight of the demo at each width, and the size of the calibration text."""
    config = HeliumConfig.from_pretrained(DEMO_DIRECTORY)
    paths = [path for path, _ in layout.weight_shapes(config)]
    for bits in WIDTHS:
        size = bits_per_weight(config, dict.fromkeys(paths, QuantizationSettings(64, bits)).get)
        yield Figure("docs/quantization.md", f"| {bits} | {size:.2f} |")
    windows = calibration_windows(HeliumTokenizer.from_pretrained(DEMO_DIRECTORY), config)
    tokens = windows.fitted_tokens + windows.held_out_tokens
    yield Figure("docs/quantization.md", f"({round(tokens, -2):,} tokens, a quarter of them held out)")


def selfcheck(_: Path) -> Iterator[Figure]:
    """How many features `selfcheck` compares."""
    features = json.loads("".join(printed_by("helium-mlx selfcheck --json")))["features"]
    yield Figure("examples/menubar.md", f"{len(features)} of {len(features)} features within bounds")


def fine_tuning(_: Path) -> Iterator[Figure]:
    """The accuracies of the two examples."""
    for script, shown in (
        ("finetune_language_id.py", "held-out accuracy {:.2f}; majority baseline {:.2f}"),
        ("finetune_tagging.py", "people, places and objects ({:.2f}; tagging nothing {:.2f})"),
    ):
        (line,) = (line for line in printed_by(f"python examples/{script}") if line.startswith("held-out accuracy"))
        yield Figure("docs/transformers.md", shown.format(*map(float, re.findall(r"[\d.]+", line))), slack=1)


def rounding(_: Path) -> Iterator[Figure]:
    """What each rounding leaves of quality at 4 bits, and mlx-lm's recipes."""
    with tempfile.TemporaryDirectory() as name:
        figures = Path(name) / "figures.json"
        lines = printed_by(f"python examples/quality_table.py --model demo --bits 4 --targets --json {figures}")
        found = {made["method"]: made for made in json.loads(figures.read_text()) if made["setting"] == "4 bits"}
    for line in lines:
        if line.startswith(("| 4 |", "| mlx-lm | mixed")):
            yield Figure("docs/quantization.md", line, slack=1)
    gptq, plain = found["--rounding gptq"], found["mx.quantize"]
    left = [f"{gptq[kind] / plain[kind]:.2f}" for kind in ("stories_kl", "prose_kl")]
    yield Figure("README.md", f"falls to {left[0]} to {left[1]} of plain rounding's (4 bits, the demo", slack=2)


def lookup(_: Path) -> Iterator[Figure]:
    """Tokens a pass with prompt lookup."""
    for kind, _tokens, a_pass, *_times in cells(printed_by("python examples/benchmark_lookup.py --runs 1")):
        # Some of the text is up to the machine, in bfloat16 (see `_story`).
        yield Figure("docs/generate.md", f"| {kind} | {float(a_pass):.1f} |", slack=3)


def keystrokes(_: Path) -> Iterator[Figure]:
    """What a keystroke costs an engine."""
    for flag in ("", " --suggest"):
        for values in cells(printed_by(f"python examples/engine_keystrokes.py{flag}")):
            yield Figure("docs/engine.md", row(*values))


def thresholds(_: Path) -> Iterator[Figure]:
    """How often suggestions are right."""
    for values in cells(printed_by("python examples/suggestion_threshold.py")):
        yield Figure("docs/engine.md", row(*values))


def parity(_: Path) -> Iterator[Figure]:
    """Cases of the grid, and the worst errors; needs the extra `parity`."""
    lines = printed_by("python tests/parity/grid.py")
    cases, _, comparisons = re.findall(r"\d+", lines[-1])
    page = "docs/correctness.md"
    yield Figure(page, f"compares {cases} combinations of heads")
    yield Figure(page, f"with live transformers, {int(comparisons):,} comparisons")
    yield Figure("README.md", f"in {cases} combinations of model, mask, cache and dtype")
    worst = dict(re.findall(r"^(float32|gradients|bfloat16|its geometric mean) +([\d.e-]+) \(", "\n".join(lines), re.M))
    for name, shown in (
        ("float32", "| float32: logits, hidden states, attentions, losses | 1e-5 | {:.1e} |"),
        ("gradients", "| float32: gradients of every parameter | 1e-4 | {:.1e} |"),
        ("bfloat16", "| bfloat16: logits and hidden states | 2e-2 | {:.1e} |"),
        ("its geometric mean", "| bfloat16: error here over torch's own, geometric mean | | {:.3f} |"),
    ):
        yield Figure(page, shown.format(float(worst[name])).replace("e-0", "e-"), slack=15)


def measured_memory(_: Path) -> Iterator[Figure]:
    """Memory that one step of the prompt takes, measured."""
    lines = printed_by("python examples/memory_table.py --measure --layers 2")
    for values in cells(lines)[-3:]:
        yield Figure("docs/sizes.md", row(*values))


def beside_mlx_lm(_: Path) -> Iterator[Figure]:
    """Peak memory, and the kernels that a GPU would be given; needs mlx-lm."""
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "demo-float32"
        printed_by(f"helium-mlx convert --hf-path demo --mlx-path {model} --dtype float32")
        with Worker("helium_mlx", model) as ours, Worker("mlx-lm", model) as theirs:
            whole, steps = (
                _beside(*(cast(float, each.ask("peak", tokens=4095, step_size=step)) / 1e6 for each in (ours, theirs)))
                for step in PEAKS.values()
            )
        counted = json.loads(
            "".join(printed_by(f"helium-mlx benchmark --model {model} --against mlx-lm --kernels --json"))
        )
    page = "docs/benchmarks.md"
    yield Figure("README.md", f"| peak memory, prompt of 4,095 tokens, MB {whole}", slack=5)
    yield Figure(page, f"| peak memory, prompt of 4,095, MB {whole}", slack=5)
    yield Figure(page, f"| the same in steps of 512 tokens {steps}", slack=5)
    for each in counted["figures"]:
        found = ["" if not values else f"{values[0]:.0f}" for values in (each["ours"], each["theirs"])]
        ratio = "" if each["ratio"] is None else f"{each['ratio']:.2f}"
        yield Figure(page, row(f"{each['name']}, {each['unit']}", *found, ratio))


def _beside(ours: float, theirs: float) -> str:
    shown = (f"{value:.{0 if value >= 100 else 1}f}" for value in (ours, theirs))
    return row(*shown, f"{theirs / ours:.2f}")


Group = Callable[[Path], Iterator[Figure]]
FAST: dict[str, Group] = {g.__name__: g for g in (sizes, demo, comparison, quantization, selfcheck)}
SLOW: dict[str, Group] = {
    g.__name__: g
    for g in (fine_tuning, rounding, lookup, keystrokes, thresholds, parity, measured_memory, beside_mlx_lm)
}


def _text(pages: Path, page: str) -> str:
    return (pages / page).read_text(encoding="utf-8")


def check(groups: list[str], pages: Path) -> bool:
    """Print what differs, a line each, and say of each group how many figures hold; return whether all do."""
    everything = True
    for name in groups:
        figures = list((FAST | SLOW)[name](pages))
        found = [line for figure in figures if (line := difference(figure, _text(pages, figure.page)))]
        print("\n".join([*found, f"{name}: {len(figures) - len(found)} of {len(figures)} passages hold"]), flush=True)
        everything &= not found
    return everything


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description="Compare the figures in README and docs with what commands print.")
    parser.add_argument("--slow", action="store_true", help="what takes minutes, too")
    parser.add_argument("--only", nargs="+", choices=[*FAST, *SLOW], metavar="GROUP", help="some: %(choices)s")
    parser.add_argument("--pages", type=Path, default=ROOT, help="the folder of README and docs (default: this one)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Compare, and return an exit status."""
    options = build_parser().parse_args(argv)
    groups = options.only or [*FAST, *(SLOW if options.slow else ())]
    outcome: list[bool] = []
    return run_command(lambda: outcome.append(check(groups, options.pages))) or int(not outcome[0])


if __name__ == "__main__":
    sys.exit(main())
