"""Text from a bundle, in Python: the host that the export checks itself with, and an example for hosts elsewhere.

    runner = BundleRunner("helium-bundle")
    for text in runner.stream("Once upon a time", max_tokens=64): print(text, end="")

It knows the bundle and nothing of the model: functions, weights, tokenizer and ids all come from there. While a token
is read, the step after it is being computed. What goes into a step is let go before it is evaluated: the caches are
updated in place only if nothing but the graph refers to them.

MLX runs a bundle's functions on the first stream of the process, and a stream in its own thread only: so a runner works
in the thread that used MLX first, and says so in any other.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import mlx.core as mx

from helium_mlx import backend
from helium_mlx.bundle.bundle import Bundle, open_bundle
from helium_mlx.bundle.functions import CacheArrays, FunctionShape
from helium_mlx.bundle.manifest import function_file
from helium_mlx.errors import BundleError, ContextOverflowError, GenerationError, one_line
from helium_mlx.model.sound_logits import are_finite, unsound
from helium_mlx.option_values import require_whole, token_ids, with_known_keywords
from helium_mlx.process import require_not_forked

Function = Callable[..., Sequence[mx.array]]


class BundleRunner:
    """One text at a time: `feed` it tokens, and it gives the logits of what comes next.

    `bundle` is the folder that `helium_mlx.export` wrote, whose hashes are checked, or one that is open already.

    Raises BundleError for a folder that is not a bundle, is damaged, or was made for another backend or version of MLX.
    """

    def __init__(self, bundle: str | Path | Bundle) -> None:
        require_not_forked("run the bundle there")
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        self.tokenizer = self.bundle.tokenizer()
        self._weights = self.bundle.load_weights()
        self._functions: dict[FunctionShape, Function] = {}
        self.reset()

    def reset(self) -> None:
        """Forget the text."""
        self.offset = 0
        self.capacity = self.bundle.manifest.capacities[0]
        self._caches: CacheArrays = self.bundle.manifest.model.empty_caches(self.capacity)

    def feed(self, tokens: Sequence[int]) -> mx.array:
        """Run tokens after what came before, and return the logits of the last, float32 (1, vocab_size).

        Raises ContextOverflowError where the bundle's context has no room for them, GenerationError for ids outside
        the vocabulary and for logits that are not numbers, and BundleError for functions that are not as the manifest
        says and in a thread that MLX cannot run them in.
        """
        step = self._picked(self._run_all(tokens))
        self._read(step)
        return step.logits.astype(mx.float32)

    def greedy(self, prompt: Sequence[int], max_tokens: int) -> Iterator[tuple[int, mx.array]]:
        """Yield up to `max_tokens` tokens, each with the logits that it is the best of; the last may be an eos id.

        Fewer come where the context ends. Afterwards the prompt and every token but the last have been fed. Raises as
        `feed` does.
        """
        require_whole("max_tokens", max_tokens, 1)
        self._require_room(0, len(prompt))
        self.reset()
        step = self._picked(self._run_all(prompt))
        fed = len(prompt)
        try:
            for remaining in range(min(max_tokens, self.bundle.manifest.context - len(prompt) + 1) - 1, -1, -1):
                following = self._picked(self._decode(step.token)) if remaining else step
                token = self._read(step)
                yield token, step.logits.astype(mx.float32)
                if token in self.bundle.manifest.eos_token_ids:
                    return
                step, fed = following, self.offset
        finally:
            # Of a step that nobody reads, what is in the caches is overwritten by whatever comes next.
            self.offset = fed

    @with_known_keywords
    def stream(self, prompt: str, *, max_tokens: int = 256) -> Iterator[str]:
        """Yield the text that follows `prompt`, greedily, a piece for each token; the last is what was still open."""
        detokenizer = self.tokenizer.detokenizer()
        for token, _ in self.greedy(self.tokenizer.encode(prompt), max_tokens):
            yield "" if token in self.bundle.manifest.eos_token_ids else detokenizer.add_token(token)
        yield detokenizer.finish()

    def _require_room(self, offset: int, count: int) -> None:
        context = self.bundle.manifest.context
        if offset + count > context:
            raise ContextOverflowError(
                f"{count} tokens come after {offset}, and the bundle's context is {context}: shorten the text, or "
                "export for a larger one with context=..."
            )

    def _run_all(self, tokens: Sequence[int]) -> mx.array:
        """Return the logits after tokens, (1, vocab_size); all before the last call is evaluated."""
        require_not_forked("run the bundle there")
        remaining = token_ids("tokens", tokens, self.bundle.manifest.model.vocab_size)
        if not remaining:
            raise GenerationError("there are no tokens; give at least the BOS id")
        self._require_room(self.offset, len(remaining))
        while True:
            length = self._next_length(len(remaining))
            now, remaining = remaining[:length], remaining[length:]
            logits = self._decode(mx.array(now, dtype=mx.uint32)) if length == 1 else self._prefill(length, now)
            if not remaining:
                return logits
            self._evaluate(mx.eval, [])

    def _next_length(self, remaining: int) -> int:
        """Return how many tokens to run next: as many at once as are not mostly padding; one where no more fit."""
        context = self.bundle.manifest.context
        lengths = {shape.length for shape in self.bundle.manifest.functions if shape.length > 1}
        fitting = [length for length in lengths if self.offset + length <= context]
        if remaining == 1 or not fitting:
            return 1
        return max((length for length in fitting if 2 * remaining >= length), default=min(fitting))

    def _prefill(self, length: int, tokens: Sequence[int]) -> mx.array:
        """Call the function of `length` on tokens, padded; nothing is evaluated."""
        padded = mx.array([*tokens, *[0] * (length - len(tokens))], dtype=mx.uint32)
        offset, count = (mx.array([number], dtype=mx.int32) for number in (self.offset, len(tokens)))
        return self._call(self._shape(length, self.offset + length), [padded, offset, count], len(tokens))

    def _decode(self, token: mx.array) -> mx.array:
        """Call the function of one token, uint32 (1,), which may be still to be computed; nothing is evaluated."""
        filled = self.offset + 1
        shape = self._shape(1, filled)
        positions = [self.offset] * (self.bundle.manifest.model.positions - 1) + [0]
        # From bytes: a list of so many flags takes a hundred times as long, and a comparison is a kernel.
        flags = memoryview(bytes([1]) * filled + bytes(shape.attended - filled)).cast("?")
        seen = mx.array(flags)  # pyright: ignore[reportArgumentType]
        return self._call(shape, [token, mx.array(positions, dtype=mx.int32), seen], 1)

    def _shape(self, length: int, filled: int) -> FunctionShape:
        """Return the function of `length` that sees least beyond `filled` places."""
        fitting = (
            shape for shape in self.bundle.manifest.functions if shape.length == length and shape.attended >= filled
        )
        return min(fitting, key=lambda shape: shape.attended)

    def _picked(self, logits: mx.array) -> "_Step":
        """Start computing the best token of logits."""
        step = _Step(logits, mx.argmax(logits, axis=-1), logits.max(axis=-1))
        self._evaluate(mx.async_eval, list(step))
        return step

    def _read(self, step: "_Step") -> int:
        if not all(are_finite(step.highest)):
            raise unsound()
        return cast(int, step.token.item())

    def _evaluate(self, evaluate: Callable[..., None], results: list[mx.array]) -> None:
        """Compute `results`, and the caches with them, by `mx.eval` or `mx.async_eval`."""
        try:
            evaluate(results, self._caches)
        except RuntimeError as error:
            # MLX's words for a stream of another thread.
            if "in current thread" not in str(error):
                raise
            raise BundleError(
                f"MLX runs the functions of {self.bundle.directory} in the thread that used MLX first, and this is "
                f"{threading.current_thread().name}: run a bundle there, or in a process of its own"
            ) from None

    def _grow(self, capacity: int) -> None:
        """Move the caches to a capacity that is larger."""
        room = [(0, 0), (0, 0), (0, capacity - self.capacity), (0, 0)]
        for index, array in enumerate(self._caches):
            # One at a time, so that two sizes of all of them are never there together.
            self._caches[index] = mx.pad(array, room)
            del array
            mx.eval(self._caches[index])
        self.capacity = capacity

    def _call(self, shape: FunctionShape, inputs: list[mx.array], count: int) -> mx.array:
        """Call a function, which is read from its file the first time, on `count` tokens; return the logits."""
        if shape.capacity > self.capacity:
            self._grow(shape.capacity)
        path = self.bundle.directory / function_file(shape)
        try:
            if shape not in self._functions:
                self._functions[shape] = backend.compiled(cast(Function, mx.import_function(str(path))))
            outputs = self._functions[shape](*inputs, *self._caches, *self._weights)
        except (RuntimeError, ValueError) as error:
            said = one_line(str(error), 200)
            raise BundleError(
                f"{path}: MLX cannot run it as the manifest says ({said}); export the bundle anew"
            ) from None
        expected = [(spec.shape, getattr(mx, spec.dtype)) for spec in self.bundle.manifest.model.outputs(shape)]
        if [(output.shape, output.dtype) for output in outputs] != expected:
            raise BundleError(f"{path}: it gives other arrays than the manifest says; export the bundle anew")
        # What went in is let go before anything is evaluated: what others than the graph hold is copied, not updated.
        logits, *self._caches = outputs
        self.offset += count
        return logits


class _Step(NamedTuple):
    """Logits (1, vocab_size), the best token of them, uint32 (1,), and the highest of them, (1,)."""

    logits: mx.array
    token: mx.array
    highest: mx.array
