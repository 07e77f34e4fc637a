"""The command `generate`: streams a completion to standard output. `python -m helium_mlx.generate --help`."""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from helium_mlx.checkpoint.config import DTYPES
from helium_mlx.errors import OptionError, TokenizerError, shown
from helium_mlx.json_writer import to_json
from helium_mlx.progress import Progress, note
from helium_mlx.terminal import CommandParser, add_repository_options, written_place

if TYPE_CHECKING:
    from helium_mlx.generation.completion import GenerationChunk
    from helium_mlx.model.helium import HeliumForCausalLM
    from helium_mlx.tokenizer.tokenizer import HeliumTokenizer


# From so many tokens on, prompt and output together, it is said what the cache takes.
LONG_RUN = 1024
DEFAULT_MODEL = "mlx-community/helium-1-preview-2b-4bit"


def build_parser() -> CommandParser:
    """Return the parser; option names are those of `helium_mlx.stream_generate`."""
    parser = CommandParser(
        "generate",
        "Stream a completion of a prompt.",
        examples={
            '--prompt "Il était une fois" -m 100': "100 tokens of the 2B model at 4 bits",
            '--model demo --prompt "Once upon a time" --temp 0.8 --num-samples 3': "three drawn ones, without network",
        },
        instead={
            "-q": "-q is --quantize of convert; --quiet leaves out statistics and progress",
            "--verbose": "statistics are shown anyway; --quiet leaves them out",
            "--system-prompt": "Helium continues text and has no chat template; write it into --prompt",
            "--draft-model": "--prompt-lookup N drafts from the text itself",
            "--adapter-path": "adapters are not loaded here; merge them into the weights first",
            "--trust-remote-code": "no code of a checkpoint is ever run; leave it out",
        },
    )
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="checkpoint directory, Hub repository or 'demo' (default: %(default)s)"
    )
    add_repository_options(parser)
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", "-p", help="text to continue; - reads standard input")
    prompts.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="prompts, completed in batches; - is stdin. One a line; JSON lines if the name ends in .jsonl (strings or "
        'objects with "prompt") or the first line is an object',
    )
    parser.add_argument("--output", metavar="FILE", help="with --prompt-file: where results go; resumed if there")
    parser.add_argument("--batch-size", type=int, default=16, help="rows computed together (default: %(default)s)")
    parser.add_argument("--num-samples", type=int, default=1, help="completions of each prompt (default: %(default)s)")
    parser.add_argument("--max-tokens", "-m", type=int, default=256, help="tokens to generate (default: %(default)s)")
    parser.add_argument(
        "--temp", "--temperature", type=float, default=0.0, dest="temperature", help="temperature; 0 is greedy"
    )
    parser.add_argument("--top-p", type=float, default=1.0, help="keep the most probable tokens up to this probability")
    parser.add_argument("--top-k", type=int, default=0, help="keep this many of the most probable tokens; 0 is all")
    parser.add_argument("--min-p", type=float, default=0.0, help="drop tokens below this fraction of the best one's")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1 discourages repeating tokens")
    parser.add_argument(
        "--repetition-context-size", type=int, help="tokens that are penalized (default: prompt and output, whole)"
    )
    parser.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        default=[],
        metavar="TOKEN=VALUE",
        help="added to a token's logit; its id or text",
    )
    parser.add_argument(
        "--ban",
        type=_token,
        action="append",
        default=[],
        dest="banned_ids",
        metavar="TOKEN",
        help="never generate this token, an id or a text that is one token",
    )
    parser.add_argument(
        "--ignore-chat-template",
        action="store_true",
        help="continue the text as it is, without a remark, where the checkpoint has a chat template",
    )
    parser.add_argument("--seed", type=int, help="makes sampling repeatable")
    parser.add_argument("--stop", action="append", default=[], help="stop before this text; may be given repeatedly")
    parser.add_argument("--ignore-eos", action="store_true", help="continue after an end-of-stream token")
    parser.add_argument(
        "--extra-eos",
        "--extra-eos-token",
        type=_token,
        action="append",
        default=[],
        metavar="TOKEN",
        help="end at this token too, an id or a text that is one token; may be given repeatedly",
    )
    parser.add_argument("--max-kv-size", type=int, help="tokens that the cache keeps: the first and the last ones")
    parser.add_argument("--kv-bits", type=int, help="quantize the cache to so many bits: 8, 6, 5 or 4")
    parser.add_argument("--kv-group-size", type=int, default=64, help="cache values that share a scale (default: 64)")
    parser.add_argument(
        "--prompt-cache",
        "--prompt-cache-file",
        type=written_place,
        metavar="FILE",
        help="cache of a prompt's beginning, read if it is there and written at the end",
    )
    parser.add_argument(
        "--prompt-lookup", type=int, default=0, metavar="N", help="guess up to N tokens ahead from what repeats"
    )
    parser.add_argument(
        "--heal",
        action="store_true",
        help="go on inside the last word, or after a space at the end, as if typed further",
    )
    parser.add_argument("--prefill-step-size", type=int, default=512, help="prompt tokens to run at a time")
    parser.add_argument(
        "--dtype", choices=DTYPES,
        help="dtype to compute in (default: the checkpoint's; float16 is faster than bfloat16 on an M1 or M2)",
    )  # fmt: skip
    parser.add_argument(
        "--no-echo", dest="echo", action="store_false", help="on a terminal, do not show the prompt before its text"
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON: an object a token, or a completion where there are several"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return build_parser().run(argv, _generate)


def _bias(text: str) -> tuple[int | str, float]:
    token, _, value = text.rpartition("=")
    try:
        return _token(token), float(value)
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not TOKEN=VALUE, such as 17=-2.5 or 'the=1'") from None


def _token(text: str) -> int | str:
    if not text:
        raise argparse.ArgumentTypeError("a token is empty; expected an id, or a text that is one token")
    return int(text) if re.fullmatch("-?[0-9]{1,18}", text) else text


def _generate(
    *,
    model: str,
    revision: str | None,
    subfolder: str | None,
    dtype: str | None,
    prompt: str | None,
    prompt_file: str | None,
    output: str | None,
    prompt_cache: str | None,
    logit_bias: list[tuple[int | str, float]],
    banned_ids: list[int | str],
    ignore_chat_template: bool,
    **options: object,
) -> None:
    from helium_mlx.memory_limits import wired_memory
    from helium_mlx.model.loading import load

    _require_together(prompt_file, output, prompt_cache, options)
    # Those that are texts are known when the tokenizer is.
    options["logit_bias"] = {token: value for token, value in logit_bias if isinstance(token, int)} or None
    options["banned_ids"] = [token for token in banned_ids if isinstance(token, int)]
    _require_in_range(options)
    text = _text_of(prompt or "")
    network, tokenizer = load(model, revision=revision, subfolder=subfolder, dtype=dtype)
    options["logit_bias"] = {_id("--logit-bias", token, tokenizer): value for token, value in logit_bias} or None
    options["banned_ids"] = [_id("--ban", token, tokenizer) for token in banned_ids]
    if tokenizer.has_chat_template and not ignore_chat_template:
        note("the checkpoint's chat template is not applied: the text is continued as it is (--ignore-chat-template)")
    with wired_memory():
        if prompt_file is not None:
            _complete_file(network, tokenizer, prompt_file, output, **options)  # pyright: ignore[reportArgumentType]
            return
        if options["num_samples"] != 1 and options["temperature"] == 0:
            note("the samples will be equal, since the temperature is 0; --temp 0.8 draws them")
        warning = tokenizer.trailing_space_warning(text)
        if warning and not options["heal"]:
            note(warning)
        if options["num_samples"] != 1:
            _complete_samples(network, tokenizer, text, **options)  # pyright: ignore[reportArgumentType]
        else:
            _complete(network, tokenizer, text, prompt_cache, **options)  # pyright: ignore[reportArgumentType]


def _id(flag: str, token: int | str, tokenizer: "HeliumTokenizer") -> int:
    if isinstance(token, int):
        return token
    try:
        return tokenizer.one_token(token)
    except TokenizerError as error:
        raise OptionError(f"{flag}: {error}") from None


def _require_together(
    prompt_file: str | None, output: str | None, prompt_cache: str | None, options: dict[str, object]
) -> None:
    """Raise OptionError for flags that do not go together."""
    from helium_mlx.generation.request import SINGLE_OPTIONS

    many = "--prompt-file" if prompt_file is not None else "--num-samples" if options["num_samples"] != 1 else None
    if output is not None and prompt_file is None:
        raise OptionError("--output is for the results of --prompt-file; redirect standard output instead")
    given = ["--prompt-cache"] if prompt_cache is not None else []
    given += [f"--{name.replace('_', '-')}" for name, value in SINGLE_OPTIONS.items() if options[name] != value]
    if prompt_cache is not None and options["heal"]:
        raise OptionError("--heal takes back tokens that --prompt-cache keeps; leave one out")
    if many and given:
        raise OptionError(f"{given[0]} is for a single completion and does not go with {many}; leave one out")


def _require_in_range(options: dict[str, object]) -> None:
    """Raise OptionError, before a model is loaded or downloaded, for what no model could be run with."""
    from helium_mlx.generation.batching import MAX_SAMPLES
    from helium_mlx.generation.request import CompletionOptions
    from helium_mlx.option_values import require_whole

    names = CompletionOptions.__dataclass_fields__.keys() & options.keys()
    CompletionOptions(**{name: options[name] for name in names})  # pyright: ignore[reportArgumentType]
    for name in ("batch_size", "prefill_step_size"):
        require_whole(name, options[name], 1)
    require_whole("num_samples", options["num_samples"], 1, MAX_SAMPLES)


def _complete(
    model: "HeliumForCausalLM",
    tokenizer: "HeliumTokenizer",
    text: str,
    prompt_cache: str | None,
    *,
    json: bool,
    echo: bool,
    batch_size: int,
    num_samples: int,
    max_tokens: int,
    max_kv_size: int | None,
    kv_bits: int | None,
    kv_group_size: int,
    prefill_step_size: int,
    **options: object,
) -> None:
    from helium_mlx.generation.streaming import stream_generate
    from helium_mlx.kv_cache.make import make_cache

    tokens = tokenizer.encode(text)
    kind: dict[str, object] = {"max_kv_size": max_kv_size, "kv_bits": kv_bits, "kv_group_size": kv_group_size}
    total = len(tokens) + max_tokens
    if max_kv_size is None:
        total = min(total, model.config.max_position_embeddings)
    memory = _memory_of(model, total, **kind) if total >= LONG_RUN else None
    stored, held = None, 0
    if prompt_cache is None:
        cache = make_cache(model, **kind)  # pyright: ignore[reportArgumentType]
    else:
        from helium_mlx.generation.prompt_cache import PromptCache

        stored = PromptCache.open(prompt_cache, model, tokenizer, **kind)  # pyright: ignore[reportArgumentType]
        cache, held = stored.prepare(tokens)
        if held:
            note(f"Prompt cache: {held} of {len(tokens)} tokens")
    progress = Progress("Prompt") if len(tokens) - held > prefill_step_size else None
    chunks = stream_generate(
        model,
        tokenizer,
        tokens[held:],
        cache=cache,
        cached_tokens=tokens[:held],
        max_tokens=max_tokens,
        prefill_step_size=prefill_step_size,
        on_progress=progress,
        **options,  # pyright: ignore[reportArgumentType]
    )
    if memory:
        note(memory)
    if progress is not None:
        # Its first step may take a while.
        progress(0, len(tokens) - held)
    generated: list[int] = []
    try:
        shown = _noting(chunks, generated)
        if json:
            _print_json(shown)
        else:
            _print_text(shown, prompt=text if echo else "", guesses=bool(options["prompt_lookup"]))
    finally:
        chunks.close()
        if stored is not None:
            stored.store(cache, tokens + generated)


def _noting(chunks: "Iterator[GenerationChunk]", tokens: list[int]) -> "Iterator[GenerationChunk]":
    for chunk in chunks:
        tokens.append(chunk.token)
        yield chunk


def _memory_of(model: "HeliumForCausalLM", tokens: int, **kind: object) -> str:
    from helium_mlx.kv_cache.memory import describe

    return describe(model.config, tokens, dtype=model.model.norm.weight.dtype, **kind)  # pyright: ignore


def _for_batches(options: dict[str, object]) -> dict[str, object]:
    """Return those of the command's options that `batch_generate` takes."""
    from helium_mlx.generation.request import SINGLE_OPTIONS

    return {name: value for name, value in options.items() if name not in SINGLE_OPTIONS and name != "echo"}


def _complete_samples(
    model: "HeliumForCausalLM",
    tokenizer: "HeliumTokenizer",
    text: str,
    *,
    num_samples: int,
    json: bool,
    **options: object,
) -> None:
    from helium_mlx.generation.batching import batch_generate
    from helium_mlx.generation.prompt_file import result_fields

    for completion in batch_generate(model, tokenizer, [text], samples=num_samples, **_for_batches(options)):  # pyright: ignore
        if json:
            _print_object(result_fields(completion, several=True))
        else:
            print(f"[{completion.sample + 1}/{num_samples}] {completion.text}", flush=True)


def _complete_file(
    model: "HeliumForCausalLM",
    tokenizer: "HeliumTokenizer",
    path: str,
    output: str | None,
    *,
    num_samples: int,
    json: bool,
    **options: object,
) -> None:
    from helium_mlx.generation.prompt_file import run_prompt_file

    report = run_prompt_file(
        model, tokenizer, path, output, samples=num_samples, on_progress=Progress("Prompts"),
        **_for_batches(options),  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    there = f", {report.already_there} were there already" if report.already_there else ""
    note(f"{report.written} completions of {report.generated_tokens} tokens{there}")


def _text_of(prompt: str) -> str:
    if prompt != "-":
        # The shell's bytes are UTF-8, whatever the locale made of them.
        try:
            return os.fsencode(prompt).decode("utf-8")
        except UnicodeDecodeError as error:
            from helium_mlx.files.text import not_utf8

            raise OptionError(f"--prompt {not_utf8(error)}") from None
    from helium_mlx.files.text import read_standard_input

    return read_standard_input("--prompt")


def _print_json(chunks: "Iterator[GenerationChunk]") -> None:
    for chunk in chunks:
        _print_object(asdict(chunk))


def _print_object(values: dict[str, object]) -> None:
    # Where a character cannot be printed, JSON has another way to write it.
    printable = (sys.stdout.encoding or "").lower() in ("utf-8", "utf8")
    print(to_json(values, ascii_only=not printable), flush=True)


def _print_text(chunks: "Iterator[GenerationChunk]", *, prompt: str, guesses: bool) -> None:
    chunk = None
    shows_prompt = prompt and sys.stdout.isatty()
    if shows_prompt:
        print(prompt if "NO_COLOR" in os.environ else f"\x1b[2m{prompt}\x1b[0m", end="", flush=True)
    for chunk in chunks:
        if shows_prompt and chunk.generated_tokens == 1 and chunk.leading_space:
            print(end=" ")
        print(chunk.text, end="", flush=True)
    print(flush=True)
    if chunk and guesses:
        passes = max(chunk.generated_tokens - chunk.accepted_tokens, 1)
        note(
            f"Guessed: {chunk.accepted_tokens} tokens, and {chunk.drafted_tokens - chunk.accepted_tokens} in vain, "
            f"{chunk.generated_tokens / passes:.2f} tokens a pass"
        )
    if chunk:
        note(
            f"Prompt: {chunk.prompt_tokens} tokens, {chunk.prompt_tps:.1f} tokens/s\n"
            f"Generation: {chunk.generated_tokens} tokens, {chunk.generation_tps:.1f} tokens/s"
            f" (ended by {chunk.finish_reason})\n"
            f"Peak memory: {chunk.peak_memory:.3f} GB"
        )


if __name__ == "__main__":
    sys.exit(main())
