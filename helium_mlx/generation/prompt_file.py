"""A file of prompts in, a file of results out: JSON lines, each written as its completion ends, resumed after any end.

A prompt file has one prompt a line. It is JSON lines if its name ends in .jsonl or its first line is a JSON object;
else each line is a prompt as it stands, quotes included. A line of JSON is the prompt as a string, or an object:

    {"prompt": TEXT or [ID, ...], "max_tokens": N, "id": ANYTHING}

all but `prompt` optional. A prompt's index is the number of its line, counted from 0; empty lines are skipped.
A result, `sample` only where several were asked for and `id` where one came:

    {"index": 0, "sample": 0, "id": ..., "text": ..., "leading_space": ..., "finish_reason": ...,
     "stop_string": ..., "prompt_tokens": N, "generated_tokens": N, "digest": ..., "model": ...}

`digest` is of the prompt and the options that shape its completion, `model` of config, weights, tokenizer and dtype (as
in `prompt_cache.fingerprint_of`, which samples the weights), wherever the model lies. An output file that exists is
added to: results that it has are not computed again, a last line that was cut off is removed, and a file that holds
anything else, or results with other digests, is refused unchanged. Each line is handed to the system as a whole, so a
killed process loses none that had ended.
"""

import fcntl
import hashlib
import json
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import cast

from helium_mlx.errors import GenerationError, HeliumError, shown
from helium_mlx.generation.batching import NOT_YET, Completion, NotYet, Request, batch_generate, check_request
from helium_mlx.generation.prompt_cache import fingerprint_of
from helium_mlx.generation.request import SINGLE_OPTIONS, CompletionOptions
from helium_mlx.generation.sampling import COUNTED_PENALTIES
from helium_mlx.json_writer import to_json
from helium_mlx.kv_cache.memory import require_batch_fits
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.option_values import ErrorOf, OnProgress, require_whole
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

_FIELDS = ("prompt", "max_tokens", "id")

# What every result begins with, hence one that was cut off as well.
_BEGINNING = b'{"index": '


@dataclass(frozen=True)
class PromptFileReport:
    """How many completions were written, how many were there already, and the tokens generated for the former."""

    written: int
    already_there: int
    generated_tokens: int


@dataclass(frozen=True)
class FilePrompt:
    """A line of a prompt file. `own` is what comes back with its results: its `id`, where it has one."""

    index: int
    prompt: str | list[int]
    max_tokens: int | None = None
    own: dict[str, object] = field(default_factory=dict)


def run_prompt_file(
    model: HeliumForCausalLM,
    tokenizer: HeliumTokenizer,
    path: str | Path,
    output: str | Path | None = None,
    *,
    batch_size: int = 16,
    samples: int = 1,
    prefill_step_size: int = 512,
    on_progress: OnProgress | None = None,
    **options: object,
) -> PromptFileReport:
    """Complete the prompts of a file, "-" for standard input; write results to `output`, by default standard output.

    "-" is standard output too. `options` are `batch_generate`'s. The lines of a regular file are all checked before
    anything runs, that they fit the context and a batch of them the memory included, and `on_progress(done, total)` is
    called after each completion; those of a pipe are checked and run as they come.

    Raises GenerationError for a line that is not a prompt, with its number, and for an output that is not this run's;
    FileNotFoundError and other OSErrors for files that cannot be read or written.
    """
    options |= {"batch_size": batch_size, "samples": samples, "prefill_step_size": prefill_step_size}
    if options.get("logits_processors"):
        raise GenerationError("logits_processors are functions, which results cannot name; use batch_generate")
    # Wrong options are refused before anything is read or written.
    batch_generate(model, tokenizer, [], **options)  # pyright: ignore[reportArgumentType]
    is_regular = str(path) != "-" and stat.S_ISREG(os.stat(path).st_mode)
    written = generated = 0
    with closing(_Results(None if str(output) == "-" else output, model, tokenizer, options)) as results:
        total = _check(model, tokenizer, path, results, batch_size) if is_regular else 0
        results.begin()
        there = len(results.done)
        requests = _requests(path, results)
        completions = batch_generate(model, tokenizer, requests, **options)  # pyright: ignore[reportArgumentType]
        with closing(completions):
            for completion in completions:
                results.write(completion)
                written, generated = written + 1, generated + completion.generated_tokens
                if on_progress and total:
                    on_progress(there + written, total)
    return PromptFileReport(written, there, generated)


def _requests(path: str | Path, results: "_Results") -> Iterator[Request | NotYet]:
    for line in _arriving(path, lambda: not results.expected):
        request = results.expect(line) if line else NOT_YET
        if request:
            yield request


def _check(
    model: HeliumForCausalLM, tokenizer: HeliumTokenizer, path: str | Path, results: "_Results", batch_size: int
) -> int:
    """Return the number of completions; raise GenerationError for a bad line, or if the results are not of this file.

    So too for a prompt that the context or, in a batch, the memory has no room for.
    """
    rows, longest, found = 0, 0, set[int]()
    limits = {"max_tokens": results.options.max_tokens, "samples": results.samples}
    for line in read_prompts(path):
        found.add(line.index)
        request = results.request_of(line)
        if not request:
            continue
        try:
            checked = check_request(model, tokenizer, request, line.index, **limits)
        except HeliumError as error:
            problem = str(error).removeprefix(f"prompt {line.index}: ")
            raise type(error)(f"{path}, line {line.index + 1}: {problem}") from None
        rows, longest = rows + len(checked.samples), max(longest, checked.longest)
    for index, _ in results.done:
        if index not in found:
            raise results.foreign(index, f"{path} has no such prompt")
    if rows:
        require_batch_fits(model, min(rows, batch_size), longest)
    return results.samples * len(found)


def read_prompts(path: str | Path) -> Iterator[FilePrompt]:
    """Yield the prompts of a file, "-" for standard input, a line at a time.

    Raises GenerationError for a line that is not a prompt, with its number counted from 1.
    """
    return (line for line in _arriving(path, lambda: True) if line)


def _arriving(path: str | Path, must_wait: Callable[[], bool]) -> Iterator[FilePrompt | None]:
    """Yield prompts as they come; None where the next has not come yet, and `must_wait` says not to wait for it."""
    is_json = str(path).endswith(".jsonl") or None
    if str(path) == "-" and sys.stdin is None:
        raise GenerationError("standard input is closed; give the prompts as a file")
    with nullcontext(sys.stdin.buffer) if str(path) == "-" else open(path, "rb") as file:
        index = -1
        for raw in _lines(cast(BufferedReader, file), must_wait):
            if raw is None:
                yield None
                continue
            index += 1
            error = partial(_bad_line, path, index)
            try:
                line = raw.decode("utf-8-sig" if index == 0 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as problem:
                raise error(f"byte {problem.start} is not UTF-8; save the file as UTF-8") from None
            if line.strip():
                is_json = _is_object(line) if is_json is None else is_json
                yield _parsed(index, line, error) if is_json else FilePrompt(index, line)


def _bad_line(path: str | Path, index: int, problem: str) -> GenerationError:
    name = "standard input" if str(path) == "-" else path
    return GenerationError(f"{name}, line {index + 1}: {problem}")


def _lines(file: BufferedReader, must_wait: Callable[[], bool]) -> Iterator[bytes | None]:
    """Yield the lines of a file; None where a pipe has not a whole one yet and `must_wait` says not to wait."""
    parts = list[bytes]()
    while True:
        while not must_wait() and not select.select([file], [], [], 0)[0]:
            yield None
        chunk = file.read1(2**16)
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            yield b"".join([*parts, line])
            parts.clear()
        parts.append(rest)
        if not chunk:
            break
    if any(parts):
        yield b"".join(parts)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parsed(index: int, line: str, error: ErrorOf) -> FilePrompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise error(f"is not JSON ({shown(str(problem))}); expected a string or an object on each line") from None
    if isinstance(value, str):
        return FilePrompt(index, value)
    if not isinstance(value, dict):
        raise error(f'is {shown(value)}; expected a string, or an object with "prompt"')
    unknown = sorted(set(value) - set(_FIELDS))
    if unknown:
        fields = ", ".join(f'"{name}"' for name in _FIELDS)
        raise error(f"{shown(unknown[0])} is not a field of a prompt; there are {fields}")
    prompt, max_tokens = value.get("prompt"), value.get("max_tokens")
    if not isinstance(prompt, str) and not (isinstance(prompt, list) and all(type(token) is int for token in prompt)):
        raise error(f'"prompt" is {shown(prompt)}; expected text or a list of token ids')
    if max_tokens is not None:
        max_tokens = require_whole('"max_tokens"', max_tokens, 1, error=error)
    return FilePrompt(index, prompt, max_tokens, {"id": value["id"]} if "id" in value else {})


class _Results:
    """The output: what it has, and what is computed now.

    `done` has digest and model of each (index, sample); `expected` the prompts that run, by index, each with the
    samples to come.
    """

    def __init__(
        self,
        output: str | Path | None,
        model: HeliumForCausalLM,
        tokenizer: HeliumTokenizer,
        options: dict[str, object],
    ) -> None:
        own = {name: value for name, value in options.items() if name in CompletionOptions.__dataclass_fields__}
        self.options = CompletionOptions(**own)  # pyright: ignore[reportArgumentType]
        self.samples = require_whole("samples", options["samples"], 1)
        self.name = str(output)
        self.done: dict[tuple[int, int], tuple[str, object]] = {}
        self.expected: dict[int, tuple[FilePrompt, set[int]]] = {}
        self._model = hashlib.sha256(_as_json(fingerprint_of(model, tokenizer))).hexdigest()[:16]
        self._shaping = hashlib.sha256(_as_json(_shaping(self.options, self.samples)))
        self._end = 0
        self._file = sys.stdout.buffer if output is None else open(output, "ab")  # noqa: SIM115
        # Only what can be read again is resumed.
        self._resumes = output is not None and stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
        try:
            if self._resumes:
                self._lock()
                self._read()
        except BaseException:
            self.close()
            raise

    def request_of(self, line: FilePrompt) -> Request | None:
        """Return what is to be generated for a line, None if all is there.

        Raises GenerationError if it has a result that another prompt, other options or another model made.
        """
        keys = [(line.index, sample) for sample in range(self.samples)]
        there = [self.done[key] for key in keys if key in self.done]
        if there and any(digest != self._digest_of(line) for digest, _ in there):
            raise self.foreign(line.index, "another prompt or other options made it")
        if any(model != self._model for _, model in there):
            raise self.foreign(line.index, "a model with other weights, tokenizer or dtype made it")
        missing = tuple(key[1] for key in keys if key not in self.done)
        return Request(line.prompt, line.index, line.max_tokens, missing) if missing else None

    def foreign(self, index: int, why: str) -> GenerationError:
        """Return the error for a result that is not of this run."""
        return GenerationError(
            f"{self.name} has a result for index {index}, but {why}; choose another output file, or remove this one"
        )

    def begin(self) -> None:
        """Remove a last line that was cut off, now that the file is known to be this run's."""
        if self._resumes:
            self._file.truncate(self._end)

    def expect(self, line: FilePrompt) -> Request | None:
        """Return what `request_of` returns, and take its results from then on."""
        request = self.request_of(line)
        if request:
            self.expected[line.index] = line, set(request.samples or ())
        return request

    def write(self, completion: Completion) -> None:
        """Add a result."""
        line, missing = self.expected[completion.index]
        missing.remove(completion.sample)
        if not missing:
            del self.expected[completion.index]
        fields = result_fields(completion, several=self.samples > 1, own=line.own)
        result = _as_json({**fields, "digest": self._digest_of(line), "model": self._model}) + b"\n"
        try:
            self._file.write(result)
            self._file.flush()
        except OSError as error:
            if self._resumes:
                error.filename = self.name
            raise

    def close(self) -> None:
        """Close the file, which lets another run have it."""
        if self._file is not sys.stdout.buffer:
            self._file.close()

    def _digest_of(self, line: FilePrompt) -> str:
        whole = self._shaping.copy()
        whole.update(_as_json([line.prompt, line.max_tokens]))
        return whole.hexdigest()[:16]

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GenerationError(f"{self.name} is being written by another run; wait for its end") from None

    def _read(self) -> None:
        with open(self.name, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    # Cut off, perhaps within what all results begin with.
                    if not line.startswith(_BEGINNING[: len(line)]):
                        raise self._not_a_result(number)
                    return
                try:
                    record = json.loads(line)
                    key, made_by = (record["index"], record.get("sample", 0)), (record["digest"], record["model"])
                except (ValueError, RecursionError, TypeError, AttributeError, KeyError):
                    raise self._not_a_result(number) from None
                if not all(type(part) is int for part in key) or not isinstance(made_by[0], str):
                    raise self._not_a_result(number)
                self.done[key] = made_by
                self._end += len(line)

    def _not_a_result(self, number: int) -> GenerationError:
        problem = "is not a result of a prompt file; choose another output file"
        return GenerationError(f"{self.name}, line {number} {problem}")


def _shaping(options: CompletionOptions, samples: int) -> dict[str, object]:
    """Return what shapes a completion, however it was spelled: a text or a list of one, a set or a list, 1 or 1.0."""
    values = {"samples": samples, "max_tokens": options.max_tokens, **vars(options)}
    values |= {"logit_bias": sorted((options.logit_bias or {}).items()), "banned_ids": sorted(options.banned_ids)}
    # What asks for nothing is left out where an older version did not know it.
    newer = ("extra_eos", *COUNTED_PENALTIES)
    left_out = (
        "logprobs",
        "logits_processors",
        *SINGLE_OPTIONS,
        *(name for name in newer if not getattr(options, name)),
    )
    return {name: value for name, value in values.items() if name not in left_out}


def result_fields(completion: Completion, *, several: bool, own: dict[str, object] | None = None) -> dict[str, object]:
    """Return what a line of results says of a completion, of one prompt or a file of them."""
    return {
        "index": completion.index,
        **({"sample": completion.sample} if several else {}),
        **(own or {}),
        "text": completion.text,
        "leading_space": completion.leading_space,
        "finish_reason": completion.finish_reason,
        "stop_string": completion.stop_string,
        "prompt_tokens": completion.prompt_tokens,
        "generated_tokens": completion.generated_tokens,
    }


def _as_json(value: object) -> bytes:
    return to_json(value).encode()
