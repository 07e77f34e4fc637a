"""A file of prompts in, a file of results out: JSON lines, each written as its completion ends, resumed after any end.

A prompt file has one prompt a line. It is JSON lines if its name ends in .jsonl or its first line is a JSON object;
else each line is a prompt as it stands, quotes included. A line of JSON is the prompt as a string, or an object:

    {"prompt": TEXT or [ID, ...], "max_tokens": N, "id": ANYTHING}

all but `prompt` optional. A prompt's index is the number of its line, counted from 0; empty lines are skipped.
A result, `sample` only where several were asked for and `id` where one came:

    {"index": 0, "sample": 0, "id": ..., "text": ..., "finish_reason": ..., "prompt_tokens": N, "generated_tokens": N,
     "digest": ..., "model": ...}

`digest` is of the prompt and the options that shape its completion, `model` of config, weights, tokenizer and dtype (as
in `prompt_cache.fingerprint_of`, which samples the weights), wherever the model lies. An output file that exists is
added to: results that it has are not computed again, a last line that was cut off is removed, and a file that holds
anything else, or results with other digests, is refused unchanged. Each line is handed to the system as a whole, so a
killed process loses none that had ended.
"""

import fcntl
import hashlib
import inspect
import json
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import cast

from helium_mlx.errors import GenerationError, HeliumError, shown
from helium_mlx.generation.batching import NOT_YET, Completion, NotYet, Request, batch_generate, check_request
from helium_mlx.generation.completion import StopStrings
from helium_mlx.generation.prompt_cache import fingerprint_of
from helium_mlx.generation.sampling import SamplingOptions
from helium_mlx.json_writer import to_json
from helium_mlx.kv_cache.memory import require_batch_fits
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.option_values import OnProgress, plain, require_whole
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

_FIELDS = ("prompt", "max_tokens", "id")

# What every result begins with, hence one that was cut off as well.
_BEGINNING = b'{"index": '

# Options that change when a completion is computed and not what it says.
_SHAPELESS = ("batch_size", "prefill_step_size")


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
    # Wrong options are refused before anything is read or written.
    batch_generate(model, tokenizer, [], **options)  # pyright: ignore[reportArgumentType]
    digests = _Digests(model, tokenizer, options)
    regular = str(path) != "-" and stat.S_ISREG(os.stat(path).st_mode)
    written = generated = 0
    with closing(_Results(None if str(output) == "-" else output, digests)) as results:
        total = _check(model, tokenizer, path, results, digests) if regular else 0
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


def read_prompts(path: str | Path) -> Iterator[FilePrompt]:
    """Yield the prompts of a file, "-" for standard input, a line at a time.

    Raises GenerationError for a line that is not a prompt, with its number counted from 1.
    """
    return (line for line in _arriving(path, lambda: True) if line)


def _arriving(path: str | Path, must_wait: Callable[[], bool]) -> Iterator[FilePrompt | None]:
    """Yield prompts as they come; None where the next has not come yet, and `must_wait` says not to wait for it."""
    name = "standard input" if str(path) == "-" else str(path)
    is_json = str(path).endswith(".jsonl") or None
    if name == "standard input" and sys.stdin is None:
        raise GenerationError("standard input is closed; give the prompts as a file")
    with nullcontext(sys.stdin.buffer) if str(path) == "-" else open(path, "rb") as file:
        index = -1
        for raw in _lines(cast(BufferedReader, file), must_wait):
            if raw is None:
                yield None
                continue
            index += 1
            try:
                line = raw.decode("utf-8-sig" if index == 0 else "utf-8").rstrip("\r\n")
                if line.strip():
                    is_json = _is_object(line) if is_json is None else is_json
                    yield _parsed(index, line) if is_json else FilePrompt(index, line)
            except UnicodeDecodeError as error:
                problem = f"byte {error.start} is not UTF-8; save the file as UTF-8"
                raise GenerationError(f"{name}, line {index + 1}: {problem}") from None
            except _BadLine as error:
                raise GenerationError(f"{name}, line {index + 1}: {error}") from None


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


class _BadLine(Exception):
    """What is wrong with a line, without where it is."""


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parsed(index: int, line: str) -> FilePrompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BadLine(f"is not JSON ({shown(str(error))}); expected a string or an object on each line") from None
    if isinstance(value, str):
        return FilePrompt(index, value)
    if not isinstance(value, dict):
        raise _BadLine(f'is {shown(value)}; expected a string, or an object with "prompt"')
    unknown = sorted(set(value) - set(_FIELDS))
    if unknown:
        fields = ", ".join(f'"{name}"' for name in _FIELDS)
        raise _BadLine(f"{shown(unknown[0])} is not a field of a prompt; there are {fields}")
    prompt, max_tokens = value.get("prompt"), value.get("max_tokens")
    if not isinstance(prompt, str) and not (isinstance(prompt, list) and all(type(token) is int for token in prompt)):
        raise _BadLine(f'"prompt" is {shown(prompt)}; expected text or a list of token ids')
    if max_tokens is not None:
        max_tokens = require_whole('"max_tokens"', max_tokens, 1, error=_BadLine)
    return FilePrompt(index, prompt, max_tokens, {name: value[name] for name in ("id",) if name in value})


def _check(
    model: HeliumForCausalLM, tokenizer: HeliumTokenizer, path: str | Path, results: "_Results", digests: "_Digests"
) -> int:
    """Return the number of completions; raise GenerationError for a bad line, or if the results are not of this file.

    So too for a prompt that the context or, in a batch, the memory has no room for.
    """
    rows, longest, found = 0, 0, set[int]()
    limits = {"max_tokens": digests.max_tokens, "samples": digests.samples}
    for line in read_prompts(path):
        found.add(line.index)
        missing = results.missing(line)
        if not missing:
            continue
        request = Request(line.prompt, line.index, line.max_tokens, missing)
        try:
            checked = check_request(model, tokenizer, request, line.index, **limits)
        except HeliumError as error:
            problem = str(error).removeprefix(f"prompt {line.index}: ")
            raise type(error)(f"{path}, line {line.index + 1}: {problem}") from None
        rows, longest = rows + len(missing), max(longest, checked.longest)
    for index, _ in results.done:
        if index not in found:
            raise results.foreign(index, f"{path} has no such prompt")
    if rows:
        require_batch_fits(model, min(rows, digests.batch_size), longest)
    return digests.samples * len(found)


class _Digests:
    """Says in a few letters what a completion depends on."""

    def __init__(self, model: HeliumForCausalLM, tokenizer: HeliumTokenizer, options: Mapping[str, object]) -> None:
        parameters = inspect.signature(batch_generate).parameters.values()
        defaults = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
        values = {name: plain(value) for name, value in {**defaults, **options}.items()}
        self.samples = cast(int, values["samples"])
        self.max_tokens = cast(int, values["max_tokens"])
        self.batch_size = cast(int, values["batch_size"])
        self.model = hashlib.sha256(_as_json(fingerprint_of(model, tokenizer))).hexdigest()[:16]
        shaping = {name: value for name, value in values.items() if name not in _SHAPELESS}
        draws = {name: value for name, value in shaping.items() if name in SamplingOptions.__dataclass_fields__}
        sampling = SamplingOptions(**draws)  # pyright: ignore[reportArgumentType]
        bias = sorted((sampling.logit_bias or {}).items())
        # However they were spelled: a text or a list of one, a set or a list, 1 or 1.0.
        shaping |= {**vars(sampling), "logit_bias": bias, "banned_ids": sorted(sampling.banned_ids)}
        shaping["stop"] = StopStrings(cast("Sequence[str] | None", values["stop"])).stop
        self._common = hashlib.sha256(_as_json(shaping))

    def of(self, line: FilePrompt) -> str:
        """Return the digest of a prompt's completions."""
        whole = self._common.copy()
        whole.update(_as_json([line.prompt, line.max_tokens]))
        return whole.hexdigest()[:16]


@dataclass
class _Expected:
    digest: str
    own: dict[str, object]
    missing: set[int]


class _Results:
    """The output: what it has, and what is computed now.

    `done` has digest and model of each (index, sample); `expected` the prompts that run, by index.
    """

    def __init__(self, output: str | Path | None, digests: _Digests) -> None:
        self.name = str(output)
        self.done: dict[tuple[int, int], tuple[str, object]] = {}
        self.expected: dict[int, _Expected] = {}
        self._digests = digests
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

    def missing(self, line: FilePrompt) -> tuple[int, ...]:
        """Return the samples of a line that are not there.

        Raises GenerationError if it has a result that another prompt, other options or another model made.
        """
        keys = [(line.index, sample) for sample in range(self._digests.samples)]
        there = [self.done[key] for key in keys if key in self.done]
        if there and any(digest != self._digests.of(line) for digest, _ in there):
            raise self.foreign(line.index, "another prompt or other options made it")
        if any(model != self._digests.model for _, model in there):
            raise self.foreign(line.index, "a model with other weights, tokenizer or dtype made it")
        return tuple(sample for index, sample in keys if (index, sample) not in self.done)

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
        """Return what is to be generated for a line, None if all is there."""
        missing = self.missing(line)
        if not missing:
            return None
        self.expected[line.index] = _Expected(self._digests.of(line), line.own, set(missing))
        return Request(line.prompt, line.index, line.max_tokens, missing)

    def write(self, completion: Completion) -> None:
        """Add a result."""
        expected = self.expected[completion.index]
        expected.missing.remove(completion.sample)
        if not expected.missing:
            del self.expected[completion.index]
        fields = result_fields(completion, several=self._digests.samples > 1, own=expected.own)
        line = _as_json({**fields, "digest": expected.digest, "model": self._digests.model}) + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            if self._resumes:
                error.filename = self.name
            raise

    def close(self) -> None:
        """Close the file, which lets another run have it."""
        if self._file is not sys.stdout.buffer:
            self._file.close()

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


def result_fields(
    completion: Completion, *, several: bool, own: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Return what a line of results says of a completion, of one prompt or a file of them."""
    return {
        "index": completion.index,
        **({"sample": completion.sample} if several else {}),
        **(own or {}),
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "generated_tokens": completion.generated_tokens,
    }


def _as_json(value: object) -> bytes:
    return to_json(value).encode()
