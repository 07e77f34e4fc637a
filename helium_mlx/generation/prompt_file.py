"""A file of prompts in, a file of results out: in JSON lines, as they finish, and to be gone on with after any end.

A prompt file has one prompt a line. It is JSON lines if its name ends in .jsonl, or if its first line is a JSON object
whatever the name; else each line is a prompt as it stands, quotes included. Where this was told by a first line that
looks like JSON, it is said which was taken. A line of JSON is the prompt as a string, or an object:

    {"prompt": TEXT or [ID, ...], "max_tokens": N, "id": ANYTHING}

all but `prompt` optional. A prompt's index is the number of its line, counted from 0; empty lines are passed over.
A result, `sample` only where several were asked for and `id` where one came:

    {"index": 0, "sample": 0, "id": ..., "text": ..., "finish_reason": ..., "prompt_tokens": N, "generated_tokens": N,
     "digest": ..., "model": ...}

`digest` is of the prompt and the options that shape its completion, `model` of config, weights, tokenizer and dtype (as
in `prompt_cache.fingerprint_of`, which samples the weights), wherever the model lies. An output file that is there is
added to: what it has is not done again, an end that was cut off is taken away, and a file that holds anything else, or
results with other digests, is refused untouched. Records go to the system whole as rows end, so a killed process loses
none; a computer that loses power may lose those of the last second.
"""

import fcntl
import hashlib
import inspect
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import cast

from helium_mlx.errors import GenerationError, HeliumError, shown
from helium_mlx.generation.batching import Completion, Request, batch_generate, check_request
from helium_mlx.generation.completion import StopStrings
from helium_mlx.generation.prompt_cache import fingerprint_of
from helium_mlx.generation.sampling import SamplingOptions
from helium_mlx.json_writer import to_json
from helium_mlx.kv_cache.memory import require_batch_fits
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.option_values import OnProgress, plain, require_whole
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

SYNC_SECONDS = 1.0
_FIELDS = ("prompt", "max_tokens", "id")

# What every record begins with, hence a record that was cut off as well.
_BEGINNING = b'{"index": '

# Options that change when a completion is made and not what it says.
_SHAPELESS = ("batch_size", "prefill_step_size")


@dataclass(frozen=True)
class PromptFileReport:
    """How many completions were written, how many were there already, and the tokens generated for the former."""

    written: int
    already_there: int
    generated_tokens: int


@dataclass(frozen=True)
class FilePrompt:
    """A line of a prompt file. `own_id` is its `id` as JSON, None where it has none."""

    index: int
    prompt: str | list[int]
    max_tokens: int | None = None
    own_id: bytes | None = None


def run_prompt_file(
    model: HeliumForCausalLM,
    tokenizer: HeliumTokenizer,
    path: str | Path,
    output: str | Path | None = None,
    *,
    on_progress: OnProgress | None = None,
    on_notice: Callable[[str], None] | None = None,
    **options: object,
) -> PromptFileReport:
    """Complete the prompts of a file, "-" for standard input; write results to `output`, None for standard output.

    `options` are `batch_generate`'s. The lines of a regular file are all checked before anything runs, that they fit
    the context and a batch of them the memory included, and `on_progress(done, total)` is called after each completion;
    those of a pipe are checked as they come. `on_notice` is called with a line that says how an ambiguous file was
    taken.

    Raises GenerationError for a line that is no prompt, with its number, and for an output that is not this run's;
    FileNotFoundError and other OSErrors for files that cannot be read or written.
    """
    # Wrong options are refused before anything is read or written.
    batch_generate(model, tokenizer, [], **options)  # pyright: ignore[reportArgumentType]
    digests = _Digests(model, tokenizer, options)
    regular = _is_regular(path)
    written = generated = 0
    with closing(_Results(output, digests)) as results:
        total = _check(model, tokenizer, path, results, digests) if regular else 0
        results.begin()
        there = len(results.done)
        requests = (request for line in read_prompts(path, on_notice) if (request := results.expect(line)))
        completions = batch_generate(model, tokenizer, requests, **options)  # pyright: ignore[reportArgumentType]
        with closing(completions):
            for completion in completions:
                results.write(completion)
                written, generated = written + 1, generated + completion.generated_tokens
                if on_progress and total:
                    on_progress(there + written, total)
    return PromptFileReport(written, there, generated)


def read_prompts(path: str | Path, on_notice: Callable[[str], None] | None = None) -> Iterator[FilePrompt]:
    """Yield the prompts of a file, "-" for standard input, a line at a time.

    `on_notice` is called with a line that says what the file was taken for, where its first line leaves a doubt.

    Raises GenerationError for a line that is no prompt, with its number counted from 1.
    """
    name = "standard input" if str(path) == "-" else str(path)
    is_json = True if str(path).endswith(".jsonl") else None
    with _opened(path) as file:
        for index, raw in enumerate(file):
            try:
                line = raw.decode("utf-8-sig" if index == 0 else "utf-8").rstrip("\r\n")
                if not line.strip():
                    continue
                if is_json is None:
                    is_json, notice = _told_by(line)
                    if notice and on_notice:
                        on_notice(f"{name}: {notice}")
                yield _parsed(index, line) if is_json else FilePrompt(index, line)
            except UnicodeDecodeError as error:
                problem = f"byte {error.start} is no UTF-8; save the file as UTF-8"
                raise GenerationError(f"{name}, line {index + 1}: {problem}") from None
            except _BadLine as error:
                raise GenerationError(f"{name}, line {index + 1}: {error}") from None


class _BadLine(Exception):
    """What is wrong with a line, without where it is."""


def _told_by(line: str) -> tuple[bool, str]:
    """Return whether a file with this first line is JSON lines, and what to say if the line leaves a doubt."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False, ""
    if isinstance(value, dict):
        return True, "taken for JSON lines, as the first line is an object"
    if isinstance(value, str):
        return False, "taken for text, a prompt a line, quotes included; JSON lines of strings need a name in .jsonl"
    return False, ""


def _parsed(index: int, line: str) -> FilePrompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BadLine(f"is not JSON ({shown(str(error))}); expected a string or an object on each line") from None
    if isinstance(value, str):
        return FilePrompt(index, value)
    if not isinstance(value, dict):
        raise _BadLine(f"is {shown(value)}; expected a string, or an object with `prompt`")
    unknown = sorted(set(value) - set(_FIELDS))
    if unknown:
        raise _BadLine(f"{shown(unknown[0])} is no field of a prompt; there are {', '.join(_FIELDS)}")
    prompt, max_tokens = value.get("prompt"), value.get("max_tokens")
    if not isinstance(prompt, str) and not (isinstance(prompt, list) and all(type(token) is int for token in prompt)):
        raise _BadLine(f"prompt is {shown(prompt)}; expected text or a list of token ids")
    if max_tokens is not None:
        max_tokens = require_whole("max_tokens", max_tokens, 1, error=_BadLine)
    own_id = _as_json(value["id"]) if "id" in value else None
    return FilePrompt(index, prompt, max_tokens, own_id)


def _is_regular(path: str | Path) -> bool:
    return str(path) != "-" and stat.S_ISREG(os.stat(path).st_mode)


def _opened(path: str | Path) -> AbstractContextManager[Iterable[bytes]]:
    if str(path) != "-":
        return open(path, "rb")
    if sys.stdin is None:
        raise GenerationError("standard input is closed; give the prompts as a file")
    return nullcontext(sys.stdin.buffer)


def _check(
    model: HeliumForCausalLM, tokenizer: HeliumTokenizer, path: str | Path, results: "_Results", digests: "_Digests"
) -> int:
    """Return the number of completions; raise GenerationError for a bad line, or if the results are not of this file.

    So too for a prompt that the context or, in a batch, the memory has no room for.
    """
    rows, longest, found = 0, 0, set[int]()
    for line in read_prompts(path):
        found.add(line.index)
        missing = results.missing(line)
        if missing:
            request = Request(line.prompt, line.index, line.max_tokens, missing)
            rows, longest = rows + len(missing), max(longest, _longest(model, tokenizer, path, request, digests))
    for index, _ in results.done:
        if index not in found:
            raise results.foreign(index, f"{path} has no such prompt")
    if rows:
        require_batch_fits(model, min(rows, digests.batch_size), longest)
    return digests.samples * len(found)


def _longest(
    model: HeliumForCausalLM, tokenizer: HeliumTokenizer, path: str | Path, request: Request, digests: "_Digests"
) -> int:
    place, limits = request.index or 0, {"max_tokens": digests.max_tokens, "samples": digests.samples}
    try:
        return check_request(model, tokenizer, request, place, **limits).longest
    except HeliumError as error:
        raise type(error)(f"{path}, line {place + 1}: {str(error).removeprefix(f'prompt {place}: ')}") from None


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
    own_id: bytes | None
    missing: set[int]


class _Results:
    """The output: what is in it, and what is to come. `done` has digest and model of each (index, sample)."""

    def __init__(self, output: str | Path | None, digests: _Digests) -> None:
        self.name = str(output)
        self.done: dict[tuple[int, int], tuple[str, object]] = {}
        self._digests = digests
        self._expected: dict[int, _Expected] = {}
        self._synced = time.monotonic()
        self._end = 0
        # Unbuffered, so that a record is either with the system or still here.
        self._file = None if output is None else open(output, "ab", buffering=0)  # noqa: SIM115
        try:
            if self._file and _is_regular(self.name):
                self._lock(self._file)
                self._read()
        except BaseException:
            self.close()
            raise

    def missing(self, line: FilePrompt) -> tuple[int, ...]:
        """Return the samples of a line that are not there.

        Raises GenerationError if a result of it is there that another prompt, other options or another model made.
        """
        keys = self._keys(line.index)
        there = [self.done[key] for key in keys if key in self.done]
        if there and any(digest != self._digests.of(line) for digest, _ in there):
            raise self.foreign(line.index, "another prompt or other options made it")
        if any(model != self._digests.model for _, model in there):
            raise self.foreign(line.index, "a model with other weights, tokenizer or dtype made it")
        return tuple(sample for index, sample in keys if (index, sample) not in self.done)

    def foreign(self, index: int, why: str) -> GenerationError:
        """Return the error for a result that is none of this run's."""
        return GenerationError(
            f"{self.name} has a result for index {index}, but {why}; choose another output file, or remove this one"
        )

    def begin(self) -> None:
        """Take away a record that was cut off, now that the file is known to be this run's."""
        if self._file and _is_regular(self.name):
            self._file.truncate(self._end)

    def expect(self, line: FilePrompt) -> Request | None:
        """Return what is to be generated for a line, None if all is there."""
        missing = self.missing(line)
        if not missing:
            return None
        self._expected[line.index] = _Expected(self._digests.of(line), line.own_id, set(missing))
        return Request(line.prompt, line.index, line.max_tokens, missing)

    def write(self, completion: Completion) -> None:
        """Add a record."""
        expected = self._expected[completion.index]
        expected.missing.remove(completion.sample)
        if not expected.missing:
            del self._expected[completion.index]
        fields = result_fields(completion, several=self._digests.samples > 1, own_id=expected.own_id)
        record = _as_json({**fields, "digest": expected.digest, "model": self._digests.model}) + b"\n"
        if self._file is None:
            sys.stdout.buffer.write(record)
            sys.stdout.buffer.flush()
            return
        while record:
            record = record[self._file.write(record) :]
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self._sync(self._file)

    def close(self) -> None:
        """Have everything on disk."""
        if self._file:
            with self._file as file:
                self._sync(file)

    def _keys(self, index: int) -> list[tuple[int, int]]:
        return [(index, sample) for sample in range(self._digests.samples)]

    def _sync(self, file: FileIO) -> None:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            os.fsync(file.fileno())
        self._synced = time.monotonic()

    def _lock(self, file: FileIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GenerationError(f"{self.name} is being written by another run; wait for its end") from None

    def _read(self) -> None:
        with open(self.name, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    # Cut off, perhaps within what all records begin with.
                    if not line.startswith(_BEGINNING[: len(line)]):
                        raise self._no_record(number)
                    return
                key, made_by = self._parsed(number, line)
                self.done[key] = made_by
                self._end += len(line)

    def _parsed(self, number: int, line: bytes) -> tuple[tuple[int, int], tuple[str, object]]:
        try:
            record = json.loads(line)
            index, sample, digest, model = record["index"], record.get("sample", 0), record["digest"], record["model"]
        except (ValueError, RecursionError, TypeError, AttributeError, KeyError):
            raise self._no_record(number) from None
        if type(index) is not int or type(sample) is not int or not isinstance(digest, str):
            raise self._no_record(number)
        return (index, sample), (digest, model)

    def _no_record(self, number: int) -> GenerationError:
        return GenerationError(f"{self.name}, line {number} is no result of a prompt file; choose another output file")


def result_fields(completion: Completion, *, several: bool, own_id: bytes | None = None) -> dict[str, object]:
    """Return what a line of results says of a completion, of one prompt or a file of them."""
    fields: dict[str, object] = {"index": completion.index}
    if several:
        fields["sample"] = completion.sample
    if own_id is not None:
        fields["id"] = json.loads(own_id)
    return fields | {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "generated_tokens": completion.generated_tokens,
    }


def _as_json(value: object) -> bytes:
    return to_json(value).encode()
