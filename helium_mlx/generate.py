"""The command `generate`: streams a completion to standard output. `python -m helium_mlx.generate --help`."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from helium_mlx.config import DTYPES
from helium_mlx.errors import GenerationError
from helium_mlx.terminal import Progress, run_command

if TYPE_CHECKING:
    from helium_mlx.generation import GenerationChunk

DEFAULT_MODEL = "mlx-community/helium-1-preview-2b-4bit"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; option names are those of `helium_mlx.stream_generate`."""
    parser = argparse.ArgumentParser(prog="helium-mlx generate", description="Stream a completion of a prompt.")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="checkpoint directory, Hub repository or 'demo' (default: %(default)s)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repository")
    parser.add_argument("--prompt", "-p", required=True, help="text to continue; - reads standard input")
    parser.add_argument("--max-tokens", "-m", type=int, default=256, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--temp", type=float, default=0.0, dest="temperature", help="temperature; 0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="keep the most probable tokens up to this probability")
    parser.add_argument("--top-k", type=int, default=0, help="keep this many of the most probable tokens; 0 is all")
    parser.add_argument("--min-p", type=float, default=0.0, help="drop tokens below this fraction of the best one's")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1 discourages repeating tokens")
    parser.add_argument("--seed", type=int, help="makes sampling repeatable")
    parser.add_argument("--stop", action="append", default=[], help="stop before this text; may be given repeatedly")
    parser.add_argument("--ignore-eos", action="store_true", help="go on after an end-of-stream token")
    parser.add_argument("--prefill-step-size", type=int, default=512, help="prompt tokens to run at a time")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype to compute in (default: the checkpoint's)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a token instead of text")
    parser.add_argument("--quiet", "-q", action="store_true", help="no statistics and no progress")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = vars(build_parser().parse_args(argv))
    return run_command(lambda: _generate(**options))


def _generate(
    *,
    model: str,
    revision: str | None,
    prompt: str,
    dtype: str | None,
    json: bool,
    quiet: bool,
    prefill_step_size: int,
    **options: object,
) -> None:
    from helium_mlx.generation import stream_generate
    from helium_mlx.loading import load

    # The shell's bytes are UTF-8, whatever the locale made of them.
    text = _read_prompt() if prompt == "-" else os.fsencode(prompt).decode("utf-8", errors="replace")
    network, tokenizer = load(model, revision=revision, dtype=dtype)
    warning = tokenizer.trailing_space_warning(text)
    if warning and not quiet:
        print(warning, file=sys.stderr)
    tokens = tokenizer.encode(text)
    chunks = stream_generate(
        network,
        tokenizer,
        tokens,
        prefill_step_size=prefill_step_size,
        on_progress=Progress("Prompt", quiet=quiet) if len(tokens) > prefill_step_size else None,
        **options,  # pyright: ignore[reportArgumentType]
    )
    _print_json(chunks) if json else _print_text(chunks, quiet=quiet)


def _read_prompt() -> str:
    if sys.stdin is None:
        raise GenerationError("standard input is closed; give the prompt with --prompt TEXT")
    # UTF-8 whatever the locale says. `echo` and editors end with a newline that is not meant.
    return sys.stdin.buffer.read().decode("utf-8", errors="replace").removesuffix("\n")


def _print_json(chunks: "Iterator[GenerationChunk]") -> None:
    for chunk in chunks:
        print(json.dumps(asdict(chunk), ensure_ascii=False), flush=True)


def _print_text(chunks: "Iterator[GenerationChunk]", *, quiet: bool) -> None:
    chunk = None
    for chunk in chunks:
        print(chunk.text, end="", flush=True)
    print(flush=True)
    if chunk and not quiet:
        print(
            f"Prompt: {chunk.prompt_tokens} tokens, {chunk.prompt_tps:.1f} tokens/s\n"
            f"Generation: {chunk.generated_tokens} tokens, {chunk.generation_tps:.1f} tokens/s"
            f" (ended by {chunk.finish_reason})\n"
            f"Peak memory: {chunk.peak_memory:.3f} GB",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
