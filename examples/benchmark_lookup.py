"""What prompt lookup saves, and what it costs, by kind of text: `python examples/benchmark_lookup.py`.

Prints as Markdown, for each kind, the tokens of a forward pass and the time with prompt lookup over the time without:
of a wall clock, and of all cores together. Both take turns on each text. The kinds, all on the demo's held-out stories,
in its six languages:

- told again from the middle: the prompt is a story and its first half once more; nearly all is copied;
- told again from the first quarter, which leaves the model more freedom to tell it otherwise;
- half a story: only names and the refrain can be copied;
- noise: drawn at a temperature so high that nothing repeats, so it shows what failing to guess costs.

On Linux, whether a pass over several tokens costs less than several passes depends on the BLAS: MLX's wheel brings a
slow one, and another can be put before it with `LD_PRELOAD=/usr/lib/x86_64-linux-gnu/openblas-pthread/libblas.so.3`.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from demo_stories import LANGUAGES, stories

from helium_mlx import HeliumForCausalLM, HeliumTokenizer, load, stream_generate
from helium_mlx.terminal import run_command

NOISE_TEMPERATURE = 20.0


@dataclass(frozen=True)
class Case:
    """A prompt, the most tokens to generate after it, and the temperature."""

    prompt: str
    max_tokens: int
    temperature: float = 0.0


@dataclass
class Measured:
    """Of one kind of text: tokens, how many of them were guessed, and each text's times with over without lookup."""

    tokens: int = 0
    guessed: int = 0
    same: bool = True
    wall: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)


def cases(tokenizer: HeliumTokenizer, languages: Sequence[str], texts: int) -> Iterator[tuple[str, Case]]:
    """Yield the name of a kind and a case of it, `texts` of each kind and language."""
    for language in languages:
        for story in stories(language, texts, seed=7, held_out=True):
            length = len(tokenizer.encode(story.text))
            quarter, half = (story.text[: story.text.rindex(" ", 0, len(story.text) // n)] for n in (4, 2))
            yield "told again from the middle", Case(f"{story.text} {half}", length // 2)
            yield "told again from the first quarter", Case(f"{story.text} {quarter}", length * 3 // 4)
            yield "half a story", Case(half, length // 2)
            yield "noise", Case(quarter, length // 2, NOISE_TEMPERATURE)


def timed(
    model: HeliumForCausalLM, tokenizer: HeliumTokenizer, case: Case, draft_tokens: int
) -> tuple[list[int], int, float, float]:
    """Return the tokens, how many were guessed, and seconds after the first token: wall clock, and all cores."""
    tokens, guessed, start = list[int](), 0, (0.0, 0.0)
    for chunk in stream_generate(
        model, tokenizer, case.prompt, max_tokens=case.max_tokens, temperature=case.temperature, seed=1,
        prompt_lookup=draft_tokens, ignore_eos=case.temperature > 0,
    ):  # fmt: skip
        start = start if tokens else (time.perf_counter(), core_seconds())
        tokens.append(chunk.token)
        guessed += chunk.from_draft
    return tokens, guessed, time.perf_counter() - start[0], core_seconds() - start[1]


def core_seconds() -> float:
    """Return the seconds that this process has computed, on all cores together."""
    times = os.times()
    return times.user + times.system


def measure(
    model_name: str, *, draft_tokens: int, languages: Sequence[str], texts: int, runs: int
) -> dict[str, Measured]:
    """Return what was measured by kind of text. Each text's times are the smallest of its runs."""
    model, tokenizer = load(model_name)
    found: dict[str, Measured] = {}
    for kind, case in cases(tokenizer, languages, texts):
        measured = found.setdefault(kind, Measured())
        plain, drafted = [], []
        for run in range(runs):
            for length in (0, draft_tokens) if run % 2 else (draft_tokens, 0):
                (drafted if length else plain).append(timed(model, tokenizer, case, length))
        measured.tokens += len(drafted[0][0])
        measured.guessed += drafted[0][1]
        measured.same &= plain[0][0] == drafted[0][0]
        measured.wall.append(min(run[2] for run in drafted) / min(run[2] for run in plain))
        measured.cores.append(min(run[3] for run in drafted) / max(min(run[3] for run in plain), 1e-9))
    return found


def table(found: dict[str, Measured]) -> str:
    """Return the table."""
    lines = ["| text | tokens | a pass | wall time | core time | same text |", "|--|--|--|--|--|--|"]
    for kind, measured in found.items():
        a_pass = measured.tokens / (measured.tokens - measured.guessed)
        wall, cores = (f"{statistics.median(ratios):.2f}" for ratios in (measured.wall, measured.cores))
        same = "yes" if measured.same else "no"
        lines.append(f"| {kind} | {measured.tokens:,} | {a_pass:.2f} | {wall} | {cores} | {same} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(description="Measure what prompt lookup saves and costs.")
    parser.add_argument("--model", default="demo", help="directory, Hub repository or 'demo' (default: %(default)s)")
    parser.add_argument("--prompt-lookup", type=int, default=8, help="most drafts a pass (default: %(default)s)")
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=LANGUAGES, help="default: all six")
    parser.add_argument("--texts", type=int, default=2, help="texts of a kind and language (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each text (default: %(default)s)")
    options = parser.parse_args(argv)

    def run() -> None:
        found = measure(
            options.model,
            draft_tokens=options.prompt_lookup,
            languages=options.languages,
            texts=options.texts,
            runs=options.runs,
        )
        print(table(found))

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
