"""Counts what a keystroke costs while texts are typed and edited: `python examples/engine_keystrokes.py`.

A text of each of six languages is typed a character at a time. After each keystroke an engine is asked for one token
after the text so far, as who offers suggestions does. On the way a word is taken back and typed again, and a letter is
put into the middle of what is there. Counted, not timed, are the tokens that a keystroke computes: all of its prompt
but the `cached_tokens`.

New are those that no earlier text has there, after the same tokens. Exit status 1 if a keystroke computes more than 2
beyond these, or half of them more than 1.

With `--suggest` it is asked for a suggestion, which goes on inside the last word. Then the prompt is what precedes this
word; what is computed to suggest something is not counted.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean, median

from helium_mlx import HeliumEngine, HeliumError, HeliumTokenizer
from helium_mlx.comparison.text import TEXTS_DIRECTORY
from helium_mlx.terminal import run_command

LANGUAGES = ("de", "en", "es", "fr", "it", "pt")
BEYOND, MEDIAN_BEYOND = 2, 1

# Keystrokes from edit to edit.
EVERY = 80

# Whoever counts tokens waits for all of them. In milliseconds.
A_MINUTE = 60_000


@dataclass
class Tally:
    """Of each keystroke: the tokens of its text, how many of them were new, and how many were computed."""

    tokens: list[int] = field(default_factory=list)
    new: list[int] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)

    @property
    def beyond(self) -> list[int]:
        """What was computed of each keystroke beyond what was new."""
        return [computed - new for computed, new in zip(self.computed, self.new, strict=True)]

    def row(self, name: str) -> str:
        """Return the row of a table."""
        texts = [name, f"{len(self.tokens):,}", f"{mean(self.tokens):.1f}"]
        for counts in (self.new, self.computed):
            texts += [f"{median(counts):.0f}", f"{mean(counts):.2f}"]
        texts += [f"{median(self.beyond):.0f}", str(max(self.beyond))]
        return f"| {' | '.join(texts)} |"


def keystrokes(text: str) -> Iterator[str]:
    """Yield the text as it stands after each keystroke of somebody who types it, and edits it now and then."""
    typed = ""
    for count, character in enumerate(text, start=1):
        typed += character
        yield typed
        if count % EVERY == 0:
            # The last word is taken back, and typed again.
            kept = typed.rstrip().rfind(" ") + 1
            yield from (typed[:length] for length in range(len(typed) - 1, kept - 1, -1))
            yield from (typed[:length] for length in range(kept + 1, len(typed) + 1))
        elif count % EVERY == EVERY // 2:
            # A letter is put in a good way back, and stays.
            place = len(typed) - EVERY // 4
            typed = f"{typed[:place]}e{typed[place:]}"
            yield typed


class Seen:
    """The texts of tokens that came before."""

    def __init__(self) -> None:
        self._tree: dict[int, dict] = {}

    def add(self, tokens: Sequence[int]) -> int:
        """Add a text; return how many of its tokens no earlier one has there, after the same tokens."""
        node, new = self._tree, 0
        for token in tokens:
            new += token not in node
            node = node.setdefault(token, {})
        return new


def typed(engine: HeliumEngine, tokenizer: HeliumTokenizer, text: str, *, suggest: bool = False) -> Tally:
    """Type a text, and count."""
    tally, seen = Tally(), Seen()
    for so_far in keystrokes(text):
        if suggest:
            end = engine.suggest(so_far, max_words=1, time_budget_ms=A_MINUTE).result()
        else:
            end = engine.stream(so_far, max_tokens=1).result()
        tally.tokens.append(end.prompt_tokens)
        tally.new.append(seen.add(tokenizer.encode(so_far)[: end.prompt_tokens]))
        tally.computed.append(end.prompt_tokens - end.cached_tokens)
    return tally


def measure(options: argparse.Namespace) -> None:
    """Type all texts and print the table. Raises HeliumError if a keystroke costs more than it may."""
    print("| | keystrokes | tokens of the text | new | mean | computed | mean | beyond the new | most |")
    print("|--|--|--|--|--|--|--|--|--|", flush=True)
    whole, tokenizer = Tally(), HeliumTokenizer.from_pretrained(options.model)
    with HeliumEngine(options.model) as engine:
        for language in LANGUAGES:
            text = (TEXTS_DIRECTORY / f"{language}.txt").read_text(encoding="utf-8").strip()[: options.characters]
            tally = typed(engine, tokenizer, text, suggest=options.suggest)
            print(tally.row(language), flush=True)
            for name, counts in vars(tally).items():
                getattr(whole, name).extend(counts)
    print(whole.row("all"))
    judge(whole.beyond)


def judge(beyond: Sequence[int]) -> None:
    """Raise HeliumError if keystrokes compute more tokens beyond the new ones than they may."""
    if max(beyond) > BEYOND or median(beyond) > MEDIAN_BEYOND:
        raise HeliumError(
            f"a keystroke computed {max(beyond)} tokens beyond the new ones, and half of them {median(beyond)}; "
            f"expected at most {BEYOND}, and {MEDIAN_BEYOND}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(description="Count the tokens that a keystroke computes while texts are typed.")
    parser.add_argument("--model", default="demo", help="directory, Hub repository or 'demo' (default: %(default)s)")
    parser.add_argument("--characters", type=int, default=600, help="of each text (default: %(default)s)")
    parser.add_argument("--suggest", action="store_true", help="ask for suggestions instead of one token")
    options = parser.parse_args(argv)
    return run_command(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
