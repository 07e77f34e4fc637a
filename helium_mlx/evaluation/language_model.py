"""Our models as a class of lm-eval: `helium_mlx` in its registry, `--model_args pretrained=DIR|REPO|mlx-lm:NAME`.

It answers request by request what lm-eval's `hf` class answers with transformers in float32. As there, a text too long
for the context loses its beginning, and a rolling score is the sum over windows that lm-eval cuts. What deviates from
it: a rolling text has one BOS, where `hf` puts a second in front of the tokenizer's own and scores that too (which
`add_bos_token=False` turns off there), and an empty continuation or one longer than the context is an error in a line.

Answers that are known (`answers.py`) are not computed again.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from typing import TYPE_CHECKING, TextIO, TypeVar, cast

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from helium_mlx.checkpoint.config import DTYPES
from helium_mlx.errors import GenerationError, UsageError, some
from helium_mlx.evaluation.answers import Answers, Value, key_of
from helium_mlx.evaluation.models import EvaluatedModel, Prompt, load_opened, open_checked, require_dtype
from helium_mlx.evaluation.scoring import Continuation
from helium_mlx.option_values import require_whole
from helium_mlx.progress import Progress

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Answered = TypeVar("Answered", bound=Value)

# lm-eval's, for a task that names no cap.
MAX_TOKENS = 256

# Answers are kept as they come, so many at a time.
_KEPT_AT_ONCE = 16


class HeliumLM(TemplateLM):
    """A model of this package, or of mlx-lm, as lm-eval asks for one."""

    def __init__(
        self,
        pretrained: str | EvaluatedModel,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        dtype: str | None = None,
        batch_size: int | str | None = 16,
        max_length: int | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if device is not None or max_batch_size is not None:
            raise UsageError("device and max_batch_size are not options here: MLX has one device, and nothing is tried")
        number = int(batch_size) if isinstance(batch_size, str) and batch_size.isdecimal() else batch_size
        self.batch_size = require_whole("batch_size", 16 if number is None else number, 1, error=UsageError)
        require_dtype(dtype, DTYPES)
        if isinstance(pretrained, str):
            side = open_checked(pretrained, revision=revision, subfolder=subfolder)
            pretrained = load_opened(side, dtype=dtype, batch_size=self.batch_size)
        self.model = pretrained
        context = self.model.context
        self.max_length = (
            context if max_length is None else require_whole("max_length", max_length, 1, context, error=UsageError)
        )
        self.answers = Answers()
        self.versions: Mapping[str, object] = {}
        self.progress_stream: TextIO | None = None
        self._identity = key_of(self.model.hashes, self.model.dtype, self.model.program, self.max_length)
        self._encoded: tuple[str | None, list[int]] = (None, [])

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self.model.eos

    @property
    def prefix_token_id(self) -> int:
        """The id that stands before a text that has no context."""
        return self.model.bos

    @property
    def max_gen_toks(self) -> int:
        """The cap of a task that names none."""
        return MAX_TOKENS

    def get_model_info(self) -> dict[str, object]:
        """Return what a result says of the model."""
        return {
            "model_name": self.model.name,
            "model_program": self.model.program,
            "model_dtype": self.model.dtype,
            "model_sha256": self.model.hashes,
            "max_length": self.max_length,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        """Return the ids of a text, with one BOS unless `add_special_tokens` is False."""
        return self.model.encode(string, special=add_special_tokens is not False)

    def loglikelihood(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation after its context, and whether it is the greedy one.

        Raises GenerationError for a continuation without tokens, or with more than the context has.
        """
        return self._answered("loglikelihood", requests, self._scores, "Scoring")

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[object, list[int], list[int]]], **kwargs: object
    ) -> list[tuple[float, bool]]:
        continuations = [self._continuation(*request[1:]) for request in requests]
        found = dict(self.model.score(continuations))
        return [(found[index].logprob, found[index].is_greedy) for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text, in windows as long as the context, every token in one of them."""
        return self._answered("loglikelihood_rolling", requests, self._rolling_scores, "Scoring texts")

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """Return what follows each context, up to one of its stop strings or its cap."""
        return self._answered("generate_until", requests, self._completions, "Generating")

    def _answered(
        self,
        kind: str,
        requests: "Sequence[Instance]",
        compute: "Callable[[Sequence[Instance]], Iterator[tuple[int, Answered]]]",
        label: str,
    ) -> list[Answered]:
        with redirect_stderr(self.progress_stream or sys.stderr):
            return self._computed(kind, requests, compute, Progress(label))

    def _computed(
        self,
        kind: str,
        requests: "Sequence[Instance]",
        compute: "Callable[[Sequence[Instance]], Iterator[tuple[int, Answered]]]",
        progress: Progress,
    ) -> list[Answered]:
        keys = [
            key_of(self._identity, request.task_name, self.versions.get(request.task_name or ""), kind, request.args)
            for request in requests
        ]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if self.answers.get(key) is None}
        known, total, asked = len(set(keys)) - len(missing), len(set(keys)), list(missing)
        progress(known, total)
        kept = dict[str, Value]()
        try:
            found = compute(list(missing.values())) if missing else iter(())
            for count, (index, answer) in enumerate(found, known + 1):
                kept[asked[index]] = answer
                if len(kept) >= _KEPT_AT_ONCE:
                    self.answers.add(kept)
                    kept = {}
                progress(count, total)
        finally:
            self.answers.add(kept)
            progress.close()
        return [cast("Answered", self.answers.get(key)) for key in keys]

    def _scores(self, requests: "Sequence[Instance]") -> Iterator[tuple[int, tuple[float, bool]]]:
        continuations = [self._continuation(*self._pair(*request.args)) for request in requests]
        for index, answer in self.model.score(continuations):
            yield index, (answer.logprob, answer.is_greedy)

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context:
            return self._encode_pair(context, continuation)
        tokens = self.model.encode(continuation, special=False)
        # A text that spells BOS out has it already.
        return ([], tokens) if tokens[:1] == [self.model.bos] else ([self.model.bos], tokens)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Do what lm-eval's does, with a context that several requests share encoded once."""
        stripped = context.rstrip()
        whole = self.tok_encode(context + continuation)
        if self._encoded[0] != stripped:
            self._encoded = stripped, self.tok_encode(stripped)
        tokens = self._encoded[1]
        return tokens, whole[len(tokens) :]

    def _continuation(self, context: Sequence[int], continuation: Sequence[int]) -> Continuation:
        tokens = [*context, *continuation]
        length = len(continuation) if context else len(continuation) - 1
        if length < 1:
            raise GenerationError("a request has a continuation without tokens, so that there is nothing to score")
        if length > self.max_length:
            raise GenerationError(
                f"a request has a continuation of {length} tokens; at most {self.max_length} fit into the context"
            )
        return Continuation(tuple(tokens[-(self.max_length + 1) :]), length)

    def _rolling_scores(self, requests: "Sequence[Instance]") -> Iterator[tuple[int, float]]:
        owners: list[int] = []
        windows: list[Continuation] = []
        for index, request in enumerate(requests):
            (text,) = request.args
            tokens = self.model.encode(text, special=False)
            tokens = tokens[1:] if tokens[:1] == [self.model.bos] else tokens
            own = [
                self._continuation(*make_disjoint_window(window))
                for window in get_rolling_token_windows(tokens, self.model.bos, self.max_length, 1)
            ]
            windows += own
            owners += [index] * len(own)
            if not own:
                yield index, 0.0
        left = Counter(owners)
        totals: dict[int, dict[int, float]] = {}
        for window, answer in self.model.score(windows):
            index = owners[window]
            totals.setdefault(index, {})[window] = answer.logprob
            if len(totals[index]) == left[index]:
                yield index, sum(value for _, value in sorted(totals.pop(index).items()))

    def _completions(self, requests: "Sequence[Instance]") -> Iterator[tuple[int, str]]:
        eos = self.model.decode([self.model.eos], skip_special=False)
        asked = [cast("tuple[str, Mapping[str, object]]", request.args) for request in requests]
        stops = [handle_stop_sequences(_until(options), eos) for _, options in asked]
        prompts = [self._prompt(*each, stop) for each, stop in zip(asked, stops, strict=True)]
        for index, tokens in self.model.complete(prompts):
            yield index, postprocess_generated_text(self.model.decode(tokens), stops[index], None)

    def _prompt(self, context: str, options: Mapping[str, object], stop: Iterable[str]) -> Prompt:
        known = normalize_gen_kwargs(dict(options), MAX_TOKENS)
        max_tokens = require_whole("max_gen_toks", known.pop("max_gen_toks"), 1)
        known.pop("until", None)
        if known.pop("do_sample"):
            raise GenerationError("a task draws its answers (do_sample); only greedy ones can be evaluated here")
        known.pop("temperature", None)
        if known:
            raise GenerationError(
                f"a task's generation_kwargs have {some(sorted(known))}; known are until, max_gen_toks and do_sample"
            )
        room = self.max_length - max_tokens
        if room < 1:
            raise GenerationError(
                f"max_gen_toks is {max_tokens}; it must be less than the context of {self.max_length} tokens"
            )
        return Prompt(self.tok_encode(context)[-room:], max_tokens, tuple(filter(None, stop)))


# As a decorator it would hide the class's own type.
register_model("helium_mlx")(HeliumLM)


def _until(options: Mapping[str, object]) -> "str | list[str] | None":
    until = options.get("until")
    return list(until) if isinstance(until, (list, tuple)) else cast("str | None", until)
