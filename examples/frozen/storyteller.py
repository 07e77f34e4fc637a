"""A program to freeze: an engine streams a text from a model folder beside it, or from the demo; it can check itself.

    pyinstaller --noconfirm storyteller.py && dist/storyteller/storyteller "Once upon a time"

helium_mlx brings its own PyInstaller hook, so there is nothing to list. What a Mac app needs besides: `../menubar.md`.
"""

import argparse
import sys
from pathlib import Path

from helium_mlx import HeliumEngine
from helium_mlx.terminal import run_command

# In a frozen program, what is beside the executable; in a checkout, what is beside this file.
HOME = Path(sys.executable if getattr(sys, "frozen", False) else __file__).resolve().parent


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description="Stream a story.")
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    parser.add_argument("--model", default=default_model(), help="checkpoint directory (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--selfcheck", action="store_true", help="prove MLX's backend on this machine instead")
    return parser


def default_model() -> str:
    """Return the folder `model` beside the program, or the demo where there is none."""
    beside = HOME / "model"
    return str(beside) if beside.is_dir() else "demo"


def tell(prompt: str, model: str, max_tokens: int) -> None:
    """Stream to standard output."""
    with HeliumEngine(model) as engine:
        print(prompt, end="", flush=True)
        for chunk in engine.stream(prompt, max_tokens=max_tokens):
            # A text that begins a word leaves out the space before it; one that goes on with a word has none.
            space = " " if chunk.leading_space and chunk.generated_tokens == 1 else ""
            print(space + chunk.text, end="", flush=True)
        print()


def main(argv: list[str] | None = None) -> int:
    """Run the program."""
    args = build_parser().parse_args(argv)
    if args.selfcheck:
        from helium_mlx import selfcheck

        return selfcheck.main([])
    return run_command(lambda: tell(args.prompt, args.model, args.max_tokens))


if __name__ == "__main__":
    sys.exit(main())
