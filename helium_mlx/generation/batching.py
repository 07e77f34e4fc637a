"""Many completions at once: rows that end leave the batch, waiting prompts take their place (continuous batching).

`batch_generate` yields each completion when it ends. Prompts are read as places become free, so that they may be more
than memory holds. Those that join together and fit one step of prefill are run together; all rows then decode together,
and one step is always in flight, as in `streaming.py`: while a step's tokens are read and turned into text, the device
computes the next.

Each row is its solo run: same positions, same options, its own stop strings, seed and context. Only its sums are
rounded in another order, so that in float32 logits agree to 1e-5, and greedy ids are the same but where two tokens are
all but equally probable.

mlx-lm's `BatchGenerator`, which the adapter lends the model to, is not used here: mlx-lm is not a dependency, takes two
seconds to import, and draws all rows from one random state, so that a row's text depends on who is beside it; nor has
it stop strings in the text or a context that ends.

`DecodingBatch` is the step that the rows take together, `PromptRun` the way of prompts into a batch; the engine's
scheduler runs on the same two.

Not here: transformers' `model.generate` on a padded batch (`model/generate.py`), prompt caches.
"""

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import mlx.core as mx

from helium_mlx.errors import GenerationError, HeliumError, shown
from helium_mlx.generation.completion import DecodedToken, FinishReason
from helium_mlx.generation.decoding_batch import BatchRow, DecodingBatch, Prefilled, groups_of, prefill_rows
from helium_mlx.generation.prompts import Prompt, holds_ids, require_generator, room_after, tokens_of_prompt
from helium_mlx.generation.request import CompletionOptions, CompletionRequest
from helium_mlx.interpreter_end import guarded
from helium_mlx.kv_cache.memory import require_batch_fits
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.option_values import require_whole
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

if TYPE_CHECKING:
    from helium_mlx.model.processors import Processor

# All of a prompt's samples are prepared with it.
MAX_SAMPLES = 10_000


@dataclass(frozen=True)
class Request:
    """A prompt with what it has of its own: None is the batch's option, and for `index` its place among the prompts.

    `samples` are the numbers of the samples wanted, where not all are.
    """

    prompt: Prompt
    index: int | None = None
    max_tokens: int | None = None
    samples: Sequence[int] | None = None


class NotYet:
    """What an iterator of prompts yields where the next has not come and rows of earlier ones run: nobody waits for it.

    It is asked again after the rows' next step.
    """


NOT_YET = NotYet()


@dataclass(frozen=True)
class Completion:
    """A completion that has ended. `tokens` are the generated ones, an eos included; `sample` counts from 0.

    `stop_string` is the one that ended the text, None where none did; `leading_space` is a chunk's.
    """

    index: int
    sample: int
    prompt: Prompt
    text: str
    tokens: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    generated_tokens: int
    stop_string: str | None = None
    leading_space: bool = False


def batch_generate(
    model: HeliumForCausalLM,
    tokenizer: HeliumTokenizer,
    prompts: Iterable[Prompt | Request | NotYet],
    *,
    batch_size: int = 16,
    samples: int = 1,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    repetition_context_size: int | None = None,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    seed: int | None = None,
    logit_bias: Mapping[int, float] | None = None,
    banned_ids: Collection[int] = (),
    logits_processors: "Sequence[Processor]" = (),
    stop: str | Sequence[str] | None = (),
    ignore_eos: bool = False,
    extra_eos: int | str | Sequence[int | str] = (),
    prefill_step_size: int = 512,
) -> Generator[Completion, None, None]:
    """Yield the completions of `prompts`, each when it ends; options are those of `stream_generate`.

    At most `batch_size` rows decode at a time. `samples` completions of each prompt share its prefill. Sample s of the
    prompt with index i draws as `stream_generate` does with the seed `seed + i * samples + s`, modulo 2^64.

    The prompts of a list are all checked at the call. Of any other iterable they are read and checked as their turn
    comes: a wrong one raises when the rows before it have ended, so that none of them is lost.

    Closing the iterator stops at once.

    Raises GenerationError and ContextOverflowError as `stream_generate`, with the index of the prompt, and
    GenerationError if `batch_size` rows as long as the longest do not fit into memory.
    """
    options = CompletionOptions(
        temperature, top_p, top_k, min_p, repetition_penalty, repetition_context_size, seed, logit_bias, banned_ids,
        presence_penalty, frequency_penalty,
        logits_processors=logits_processors,
        max_tokens=max_tokens, stop=stop, ignore_eos=ignore_eos, extra_eos=extra_eos,
    )  # fmt: skip
    return complete_batch(
        model, tokenizer, prompts, options, batch_size=batch_size, samples=samples, prefill_step_size=prefill_step_size
    )


def complete_batch(
    model: HeliumForCausalLM,
    tokenizer: HeliumTokenizer,
    prompts: Iterable[Prompt | Request | NotYet],
    options: CompletionOptions,
    *,
    batch_size: int = 16,
    samples: int = 1,
    prefill_step_size: int = 512,
) -> Generator[Completion, None, None]:
    """Do what `batch_generate` does, with options that do without what batches lack."""
    require_generator(model, tokenizer)
    batch_size = require_whole("batch_size", batch_size, 1)
    samples = require_whole("samples", samples, 1, MAX_SAMPLES)
    prefill_step_size = require_whole("prefill_step_size", prefill_step_size, 1)
    _require_several(prompts)
    options.require_fit(model.config, tokenizer)

    def rows_of(request: CheckedRequest | NotYet) -> list[_CompletionRow]:
        rows = []
        if isinstance(request, NotYet):
            return rows
        for sample in request.samples:
            seed = None if options.seed is None else (options.seed + request.index * samples + sample) % 2**64
            own = CompletionRequest(request.tokens, replace(options, seed=seed), request.count)
            rows.append(_CompletionRow(request, sample, own, model, tokenizer))
        return rows

    def checked(place: int, prompt: Prompt | Request) -> CheckedRequest:
        return check_request(model, tokenizer, prompt, place, max_tokens=options.max_tokens, samples=samples)

    if isinstance(prompts, Sequence):
        known = [checked(place, prompt) for place, prompt in enumerate(cast("Sequence[Prompt | Request]", prompts))]
        # Of all of them it is known which is the longest, and whether there are enough to fill the batch.
        if known:
            rows = min(batch_size, sum(len(request.samples) for request in known))
            require_batch_fits(model, rows, max(request.longest for request in known))
        requests = iter(known)
    else:
        requests = _checked_as_read(model, prompts, checked, batch_size)
    return guarded(_complete(model, map(rows_of, requests), batch_size=batch_size, step_size=prefill_step_size))


@dataclass(frozen=True)
class CheckedRequest:
    """A request with its prompt's ids, the number of tokens that its completion may have, and the samples wanted."""

    request: Request
    index: int
    tokens: list[int]
    count: int
    samples: Sequence[int]

    @property
    def longest(self) -> int:
        """How many tokens prompt and completion may come to have."""
        return len(self.tokens) + self.count


def check_request(
    model: HeliumForCausalLM,
    tokenizer: HeliumTokenizer,
    prompt: Prompt | Request,
    place: int,
    *,
    max_tokens: int,
    samples: int,
) -> CheckedRequest:
    """Return what a prompt, or a request with what it has of its own, comes to; `place` is its index if it has none.

    Raises GenerationError and ContextOverflowError, which name the index.
    """
    request = prompt if isinstance(prompt, Request) else Request(prompt)
    index = place if request.index is None else require_whole("index", request.index, 0)
    limit = max_tokens if request.max_tokens is None else request.max_tokens
    wanted = range(samples) if request.samples is None else request.samples
    try:
        tokens = tokens_of_prompt(model, tokenizer, request.prompt)
        count = min(require_whole("max_tokens", limit, 1), room_after(model, 0, len(tokens)))
        numbers = wanted if request.samples is None else [_sample(number, samples) for number in wanted]
    except HeliumError as error:
        raise type(error)(f"prompt {index}: {error}") from None
    return CheckedRequest(request, index, tokens, count, numbers)


def _sample(number: object, samples: int) -> int:
    return require_whole("sample", number, 0, samples - 1)


def _checked_as_read(
    model: HeliumForCausalLM,
    prompts: Iterable[Prompt | Request | NotYet],
    check: Callable[[int, Prompt | Request], CheckedRequest],
    batch_size: int,
) -> Iterator[CheckedRequest | NotYet]:
    """Pass prompts on as long as a batch of them fits into memory. Raises GenerationError at the first that does not.

    Of what is still to come nothing is known: a batch counts as full of rows as long as the longest so far.
    """
    rows = longest = place = 0
    for prompt in prompts:
        if isinstance(prompt, NotYet):
            yield prompt
            continue
        request, place = check(place, prompt), place + 1
        more, longer = min(batch_size, rows + len(request.samples)), max(longest, request.longest)
        if (more, longer) != (rows, longest):
            require_batch_fits(model, more, longer)
        rows, longest = more, longer
        yield request


def _require_several(prompts: object) -> None:
    """Raise GenerationError for a single prompt, and for what is not prompts at all."""
    flat = getattr(prompts, "ndim", 2) < 2
    if isinstance(prompts, (str, bytes)) or flat or (isinstance(prompts, Sequence) and prompts and holds_ids(prompts)):
        raise GenerationError("prompts is a single prompt; give a list of prompts: [prompt]")
    if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
        raise GenerationError(f"prompts is {shown(prompts)}; give a list of prompts, or another iterable of them")


class _CompletionRow(BatchRow):
    """A row that collects its text."""

    def __init__(
        self,
        checked: CheckedRequest,
        sample: int,
        request: CompletionRequest,
        model: HeliumForCausalLM,
        tokenizer: HeliumTokenizer,
    ) -> None:
        super().__init__(request, model, tokenizer)
        self.checked = checked
        self.sample = sample
        self.text = ""

    def completed(self, decoded: DecodedToken) -> Completion | None:
        """Take a token that was read; return the completion if it was the last."""
        self.text += self.add(decoded)
        if self.reason is None:
            return None
        return Completion(
            index=self.checked.index,
            sample=self.sample,
            prompt=self.checked.request.prompt,
            text=self.text,
            tokens=self.tokens,
            finish_reason=self.reason,
            prompt_tokens=len(self.request.prompt),
            generated_tokens=len(self.tokens),
            stop_string=self.text_of.stop_string,
            leading_space=self.text_of.leading_space,
        )


def _complete(
    model: HeliumForCausalLM, requests: Iterator[list[_CompletionRow]], *, batch_size: int, step_size: int
) -> Generator[Completion, None, None]:
    waiting, batch = _Waiting(model, requests, step_size), DecodingBatch[_CompletionRow](model)
    while True:
        for row, decoded in batch.advance(waiting.take(batch_size - len(batch.rows))):
            if completion := row.completed(decoded):
                yield completion
        if batch.is_empty and waiting.is_over:
            break
    waiting.raise_error()


class _Waiting:
    """The prompts that have not joined yet. Prefills just as many as there are places for."""

    def __init__(self, model: HeliumForCausalLM, requests: Iterator[list[_CompletionRow]], step_size: int) -> None:
        self.model = model
        self.requests = requests
        self.step_size = step_size
        self.ready: deque[Prefilled[_CompletionRow]] = deque()
        self.exhausted = False
        self.error: HeliumError | None = None

    @property
    def is_over(self) -> bool:
        """Whether nobody will come any more."""
        return self.exhausted and not self.ready

    def take(self, places: int) -> list[Prefilled[_CompletionRow]]:
        """Return the next rows, at most `places`, in the order of the prompts."""
        fetched, count = list[list[_CompletionRow]](), len(self.ready)
        while count < places and (samples := self._next()):
            fetched.append(samples)
            count += len(samples)
        if fetched:
            self._prefill(fetched)
        return [self.ready.popleft() for _ in range(min(places, len(self.ready)))]

    def raise_error(self) -> None:
        """Raise what reading the prompts ended with, if it was an error."""
        if self.error:
            raise self.error

    def _next(self) -> list[_CompletionRow] | None:
        if self.exhausted:
            return None
        try:
            samples = next(self.requests, None)
        except HeliumError as error:
            samples, self.error = None, error
        self.exhausted = samples is None
        return samples

    def _prefill(self, requests: list[list[_CompletionRow]]) -> None:
        prefilled = list[tuple[int, list[Prefilled[_CompletionRow]]]]()
        for group in groups_of([len(samples[0].request.prompt) for samples in requests], self.step_size):
            layers, logits = prefill_rows(
                self.model, [requests[place][0].request.prompt for place in group], step_size=self.step_size
            )
            mx.async_eval(logits)
            for row, place in enumerate(group):
                own = logits[row : row + 1]
                prefilled.append((place, [Prefilled(sample, layers, row, own) for sample in requests[place]]))
        for _, samples in sorted(prefilled, key=lambda each: each[0]):
            self.ready.extend(samples)
