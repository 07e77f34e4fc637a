"""Measures how often suggestions are right, by threshold: `python examples/suggestion_threshold.py`.

At every so many characters of stories that the demo was not trained on, and of prose, which it does not know, an engine
is asked for suggestions without a threshold. A word is right if it, and all before it, are what the text goes on with.
Of each threshold are printed the share of the places that something is shown at, how often its first word is right, and
how many of all words that are shown are.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from helium_mlx import HeliumEngine
from helium_mlx.comparison.text import LANGUAGES, STORIES, TEXTS_DIRECTORY
from helium_mlx.engine.suggestions import SuggestedWord
from helium_mlx.terminal import run_command

THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
WORDS = 4

# Before so many characters nobody could know how a text goes on.
FIRST = 40

# Whoever measures waits for all words. In milliseconds.
A_MINUTE = 60_000


@dataclass(frozen=True)
class Place:
    """The probabilities of the words that were suggested at a place, each with those before it, and how many of the
    first are right.
    """

    probabilities: list[float]
    right: int

    def shown(self, threshold: float) -> int:
        """Return how many words are shown: those up to the first that brings the probability below the threshold."""
        below = (count for count, value in enumerate(self.probabilities) if value < threshold)
        return next(below, len(self.probabilities))


def place_of(words: Sequence[SuggestedWord], rest: str) -> Place:
    """Return what words that were suggested are worth where the text goes on with `rest`."""
    text, right = "", 0
    for word in words:
        text += word.text
        if not rest.startswith(text) or rest[len(text) :][:1].strip():
            break
        right += 1
    return Place([word.probability for word in words], right)


def places(kind: str, every: int) -> Iterator[tuple[str, str]]:
    """Yield the beginnings of texts, each with how its line goes on."""
    for language in LANGUAGES:
        for text in (TEXTS_DIRECTORY / kind / f"{language}.txt").read_text(encoding="utf-8").strip().split("\n\n"):
            for end in range(FIRST, len(text), every):
                yield text[:end], text[end:].partition("\n")[0]


def cells(found: Sequence[Place], threshold: float) -> list[str]:
    """Return a threshold's cells for texts of a kind."""
    shown = [(place.shown(threshold), place.right) for place in found if place.shown(threshold)]
    words, right = sum(count for count, _ in shown), sum(min(pair) for pair in shown)
    first = sum(right > 0 for _, right in shown)
    parts = ((len(shown), len(found)), (first, len(shown)), (right, words))
    return [f"{part / max(whole, 1):.0%}" for part, whole in parts]


def measure(options: argparse.Namespace) -> None:
    """Ask at all places, and print the table."""
    with HeliumEngine("demo", dtype="float32") as engine:
        kinds = [
            [
                place_of(list(engine.suggest(text, max_words=WORDS, threshold=0, time_budget_ms=A_MINUTE)), rest)
                for text, rest in places(kind, options.every)
            ]
            for kind in (STORIES, ".")
        ]
    headings = [f"{name}: shown at | first word right | words right" for name in ("stories", "prose")]
    print(f"| threshold | {' | '.join(headings)} |")
    print("|--|--|--|--|--|--|--|")
    for threshold in THRESHOLDS:
        print(f"| {threshold:.1f} | {' | '.join(cell for found in kinds for cell in cells(found, threshold))} |")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(description="Measure how often suggestions are right, by threshold.")
    parser.add_argument("--every", type=int, default=29, help="characters from place to place (default: %(default)s)")
    options = parser.parse_args(argv)
    return run_command(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
