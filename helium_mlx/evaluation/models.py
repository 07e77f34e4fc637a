"""The models that are evaluated: a checkpoint that this package opens, or one that mlx-lm does (`mlx-lm:NAME`).

Both take token ids and know nothing of tasks. Of a checkpoint of this package, requests share what they have in common
(`scoring.py`), and completions run as rows of a batch. mlx-lm's models come with caches of any kind: there a context is
computed once and its cache copied for each continuation, and completions run one by one.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, cast

import mlx.core as mx

from helium_mlx.backend import dtype_name
from helium_mlx.comparison.sides import MLX_LM_PREFIX, HeliumSide, MlxLmSide, open_side
from helium_mlx.errors import CheckpointError, UsageError, one_line
from helium_mlx.evaluation.scoring import STEP, Answer, Continuation, score_continuations, token_logprobs
from helium_mlx.files.hashes import file_hashes
from helium_mlx.files.hub import resolve
from helium_mlx.files.names import CONFIG_FILE, GENERATION_CONFIG_FILE
from helium_mlx.files.untrusted import FileProblem, read_json_object
from helium_mlx.generation.batching import Request, complete_batch
from helium_mlx.generation.request import CompletionOptions
from helium_mlx.model.loading import load_model
from helium_mlx.model.sound_logits import are_sound, require_sound
from helium_mlx.option_values import whole

# What lm-eval takes for a model that does not say.
DEFAULT_CONTEXT = 2048


@dataclass(frozen=True)
class Prompt:
    """What is to be completed greedily, up to one of the stop strings or `max_tokens`."""

    tokens: list[int]
    max_tokens: int
    stop: tuple[str, ...]


class EvaluatedModel(Protocol):
    """What an evaluation asks of either; `hashes` are the SHA-256 of a checkpoint's files."""

    name: str
    program: str
    dtype: str
    context: int
    bos: int
    eos: int
    hashes: dict[str, str]

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of a text, with `special` after what the tokenizer puts before one, which is there once."""
        ...

    def decode(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of ids."""
        ...

    def score(self, continuations: Sequence[Continuation]) -> Iterator[tuple[int, Answer]]:
        """Yield the index of each continuation with its answer, in any order."""
        ...

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, list[int]]]:
        """Yield the index of each prompt with the tokens that follow it, in any order."""
        ...


def open_checked(name: str, *, revision: str | None = None, subfolder: str | None = None) -> HeliumSide | MlxLmSide:
    """Open a directory, a Hub repository, "demo", or after "mlx-lm:" what mlx-lm can open; no weights are read.

    Raises CheckpointError and its like, one line, also for a checkpoint with a head for classification.
    """
    _require_language_model(name, resolve(name.removeprefix(MLX_LM_PREFIX), revision=revision, subfolder=subfolder))
    side = open_side(name, revision=revision, subfolder=subfolder)
    assert isinstance(side, (HeliumSide, MlxLmSide))
    if isinstance(side, MlxLmSide):
        side.require_loadable()
        _eos_ids(side)
    return side


def load_opened(side: HeliumSide | MlxLmSide, *, dtype: str | None, batch_size: int) -> EvaluatedModel:
    """Return a model that was opened, its weights loaded."""
    own = None if dtype is None else getattr(mx, dtype)
    return HeliumEvaluated(side, own, batch_size) if isinstance(side, HeliumSide) else MlxLmEvaluated(side, own)


class HeliumEvaluated:
    """A checkpoint of this package."""

    def __init__(self, side: HeliumSide, dtype: mx.Dtype | None, batch_size: int) -> None:
        checkpoint = side.checkpoint
        self.name, self.program, self.batch_size = side.name, "helium_mlx", batch_size
        self.tokenizer = side.tokenizer
        self.model = load_model(checkpoint, dtype=side.dtype if dtype is None else dtype)
        self.dtype = dtype_name(self.model.dtype)
        self.context = checkpoint.config.max_position_embeddings
        self.bos, self.eos = side.bos, self.tokenizer.eos_token_id
        files = [checkpoint.directory / CONFIG_FILE, *checkpoint.files, *self.tokenizer.files]
        self.hashes = file_hashes(dict.fromkeys(files), within=checkpoint.directory)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of a text, with `special` after one BOS."""
        return self.tokenizer.encode(text, add_special_tokens=special)

    def decode(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of ids."""
        return self.tokenizer.library_text(tokens, skip_special_tokens=skip_special)

    def score(self, continuations: Sequence[Continuation]) -> Iterator[tuple[int, Answer]]:
        """Yield the index of each continuation with its answer, in any order."""
        return score_continuations(self.model, continuations, batch_size=self.batch_size)

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, list[int]]]:
        """Yield the index of each prompt with the tokens that follow it, the longest first."""

        order = sorted(range(len(prompts)), key=lambda index: (prompts[index].stop, -len(prompts[index].tokens)))
        for stop, group in groupby(order, key=lambda index: prompts[index].stop):
            options = CompletionOptions(stop=stop)
            requests = [Request(prompts[index].tokens, index, prompts[index].max_tokens) for index in group]
            for done in complete_batch(
                self.model, self.tokenizer, requests, options, batch_size=self.batch_size, prefill_step_size=STEP
            ):
                yield done.index, done.tokens


class MlxLmEvaluated:
    """What mlx-lm opens, as it opens it: its model, its tokenizer, its caches."""

    def __init__(self, side: MlxLmSide, dtype: mx.Dtype | None) -> None:
        self.name, self.program = side.name, "mlx-lm"
        self.model: Any = side.load_model(side.dtype if dtype is None else dtype)
        self.tokenizer: Any = side.tokenizer
        self.dtype = dtype_name(side.dtype if dtype is None else dtype)
        self.context = side.context or DEFAULT_CONTEXT
        self.bos = side.bos
        self._eos_ids = _eos_ids(side)
        self.eos = self._eos_ids[0]
        self.hashes = file_hashes(_tokenizer_and_weights(side), within=side.directory)
        self._bos_text = self.decode([self.bos], skip_special=False)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of a text, with `special` after what the tokenizer puts before one."""
        is_spelled = bool(self._bos_text) and text.startswith(self._bos_text)
        return list(self.tokenizer.encode(text, add_special_tokens=special and not is_spelled))

    def decode(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of ids."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=skip_special)

    def score(self, continuations: Sequence[Continuation]) -> Iterator[tuple[int, Answer]]:
        """Yield the index of each continuation with its answer, those of one context after each other."""
        order = sorted(range(len(continuations)), key=lambda index: continuations[index].tokens)
        context: tuple[int, ...] = ()
        cache: Any = None
        for index in order:
            continuation = continuations[index]
            own = continuation.inputs[: continuation.first]
            if cache is None or own != context:
                context, cache = own, self._after(own)
            yield index, self._answer(continuation, copy.deepcopy(cache))

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, list[int]]]:
        """Yield the index of each prompt with the tokens that follow it."""
        from mlx_lm.generate import generate_step

        for index, prompt in enumerate(prompts):
            tokens: list[int] = []
            for token, _ in generate_step(mx.array(prompt.tokens), self.model, max_tokens=prompt.max_tokens):
                tokens.append(int(token))
                if tokens[-1] in self._eos_ids or self._is_stopped(tokens, prompt.stop):
                    break
            yield index, tokens

    def _is_stopped(self, tokens: Sequence[int], stop: Sequence[str]) -> bool:
        text = self.decode(tokens)
        return any(each in text for each in stop)

    def _after(self, context: Sequence[int]) -> object:
        """Return the cache of a context. Its logits are never computed: MLX computes what is asked for."""
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self.model)
        for start in range(0, len(context), STEP):
            self.model(mx.array([context[start : start + STEP]]), cache=cache)
            mx.eval([layer.state for layer in cache])
        return cache

    def _answer(self, continuation: Continuation, cache: object) -> Answer:
        inputs = continuation.inputs[continuation.first :]
        targets = continuation.tokens[continuation.first + 1 :]
        total, is_greedy = 0.0, True
        for start in range(0, len(inputs), STEP):
            logits = self.model(mx.array([inputs[start : start + STEP]]), cache=cache)[0]
            own = mx.array(targets[start : start + STEP])
            logprobs = token_logprobs(logits, own)
            same, sound = (logits.argmax(axis=-1) == own).all(), are_sound(logits)
            mx.eval(logprobs, same, sound)
            require_sound(sound)
            total += sum(cast("list[float]", logprobs.tolist()))
            is_greedy = is_greedy and bool(same.item())
        return Answer(total, is_greedy)


def _require_language_model(name: str, directory: Path) -> None:
    try:
        architectures = read_json_object(directory / CONFIG_FILE).get("architectures")
    except FileProblem as problem:
        raise CheckpointError(f"{directory / CONFIG_FILE}: {problem}") from None
    for architecture in architectures if isinstance(architectures, list) else []:
        if "Classification" in str(architecture):
            raise CheckpointError(
                f"{name} is a {one_line(str(architecture), 80)}, without the head of a language model; name a "
                "checkpoint that generates text"
            )


def _eos_ids(side: MlxLmSide) -> list[int]:
    """Return the ids that end a text: the tokenizer's first, then those of the configs, as mlx-lm takes them."""
    found: list[object] = [side.tokenizer.eos_token_id]
    path = side.directory / GENERATION_CONFIG_FILE
    try:
        configs = [side.config, *([read_json_object(path)] if path.is_file() else [])]
    except FileProblem as problem:
        raise CheckpointError(f"{path}: {problem}") from None
    for config in configs:
        named = config.get("eos_token_id")
        found += named if isinstance(named, list) else [named]
    ids = list(dict.fromkeys(index for index in map(whole, found) if index is not None))
    if not ids:
        raise CheckpointError(f"{side.name}: neither its tokenizer nor its config says which token ends a text")
    return ids


def _tokenizer_and_weights(side: MlxLmSide) -> list[Path]:
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
    return [side.directory / CONFIG_FILE, *side.files, *filter(Path.is_file, (side.directory / name for name in names))]


def require_dtype(dtype: str | None, known: Sequence[str]) -> None:
    """Raise UsageError for a dtype that no model computes in."""
    if dtype is not None and dtype not in known:
        raise UsageError(f"dtype is {dtype!r}; known are {', '.join(known)}")
