"""Write the stories in `helium_mlx/texts/stories`, which `helium_mlx.compare` scores beside its prose.

    python examples/held_out_stories.py helium_mlx/texts/stories

They are held out: their hero, object and place never met in the demo's training, and the seed is none of its own.
"""

import argparse
import sys
from pathlib import Path

from demo_stories import LANGUAGES, stories

SEED = 2_000_003
STORIES = 4


def text_of(language: str) -> str:
    """Return the stories of a language, with a blank line between them."""
    return "\n\n".join(story.text for story in stories(language, STORIES, seed=SEED, held_out=True)) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description="Write held-out stories, a file a language.")
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args(argv).directory
    directory.mkdir(parents=True, exist_ok=True)
    for language in LANGUAGES:
        (directory / f"{language}.txt").write_text(text_of(language), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
