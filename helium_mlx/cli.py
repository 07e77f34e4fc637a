"""The script `helium-mlx`: each command is a module of the package, with a `main` of its own."""

import argparse
import importlib
import sys

from helium_mlx.errors import did_you_mean, shown
from helium_mlx.version import __version__

# command -> what it does, one line for --help
COMMANDS = {
    "generate": "stream a completion of a prompt",
    "convert": "convert Hugging Face weights to MLX, optionally quantized",
    "compare": "measure how far a checkpoint is from its reference: KL, top-1, perplexity",
    "evaluate": "evaluate a model on the tasks of Helium's page, or on any of lm-eval's",
    "serve": "serve completions to other programs, and a page to write on",
    "export": "export a checkpoint as a bundle that C++ and Swift can run",
    "upload": "publish a converted directory on the Hugging Face Hub",
    "benchmark": "measure speed and memory on this machine, beside mlx-lm",
    "tokenize": "print the tokens of a text, with their ids",
    "selfcheck": "prove this machine's MLX backend against stored outputs of transformers",
}


def build_parser() -> argparse.ArgumentParser:
    """Return one parser of all commands, for tools that read it: `shtab` makes a shell's completion of it."""
    parser = argparse.ArgumentParser(prog="helium-mlx")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command")
    for name, purpose in COMMANDS.items():
        module = importlib.import_module(f"helium_mlx.{name}")
        # argparse.ArgumentParser, which the options are copied into.
        commands.add_parser(name, help=purpose, parents=[module.build_parser()], add_help=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run `helium-mlx COMMAND ...` and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(f"helium_mlx.{argv[0]}").main(argv[1:])
    if argv and argv[0] == "--version":
        print(f"helium-mlx {__version__}")
        return 0
    if argv and not argv[0].startswith("-"):
        near = did_you_mean(argv[0], COMMANDS)
        print(f"error: there is no command {shown(argv[0])}{near or '; helium-mlx --help lists them'}", file=sys.stderr)
        return 2
    asked = bool(argv) and argv[0] in ("--help", "-h")
    print(_usage(), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {command:<{width}}  {purpose}" for command, purpose in COMMANDS.items()]
    return "\n".join(["usage: helium-mlx COMMAND [options]", "", "commands:", *lines, "",
                      "helium-mlx COMMAND --help lists a command's options."])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
