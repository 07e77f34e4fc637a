"""Text from a bundle, in Python: the host that the export checks itself with, and an example for hosts elsewhere.

    runner = BundleRunner("helium-bundle")
    for text in runner.stream("Once upon a time", max_tokens=64): print(text, end="")

It knows the bundle and nothing of the model: functions, weights, tokenizer and ids all come from there. Each step is
evaluated before the next is built: the cache is updated in place only if no earlier step refers to it any more.

MLX runs a bundle's functions on the first stream of the process, and a stream in its own thread only: so a runner works
in the thread that used MLX first, and says so in any other.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import mlx.core as mx

from helium_mlx.bundle.bundle import Bundle, open_bundle
from helium_mlx.bundle.functions import CacheArrays, FunctionShape
from helium_mlx.bundle.manifest import function_file
from helium_mlx.errors import BundleError, ContextOverflowError, GenerationError, one_line
from helium_mlx.model.sound_logits import are_sound, require_sound
from helium_mlx.option_values import require_whole, token_ids
from helium_mlx.process import require_not_forked

Outputs = Sequence[mx.array]


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
        self._functions: dict[FunctionShape, Callable[..., Outputs]] = {}
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
        return self._step(tokens)[0]

    def _step(self, tokens: Sequence[int]) -> tuple[mx.array, mx.array]:
        """Return the logits after tokens, (1, vocab_size), and the best token, (1,)."""
        require_not_forked("run the bundle there")
        remaining = token_ids("tokens", tokens, self.bundle.manifest.model.vocab_size)
        if not remaining:
            raise GenerationError("there are no tokens; give at least the BOS id")
        self._require_room(self.offset, len(remaining))
        while True:
            length = self._next_length(len(remaining))
            logits = self._run(length, remaining[:length])
            remaining = remaining[length:]
            if not remaining:
                break
            self._evaluate([])
        token, sound = mx.argmax(logits, axis=-1), are_sound(logits)
        # All in one evaluation.
        self._evaluate([logits, token, sound])
        require_sound(sound)
        return logits, token

    def greedy(self, prompt: Sequence[int], max_tokens: int) -> Iterator[tuple[int, mx.array]]:
        """Yield up to `max_tokens` tokens, each with the logits that it is the best of; the last may be an eos id.

        Fewer come where the context ends. Raises as `feed` does.
        """
        require_whole("max_tokens", max_tokens, 1)
        self._require_room(0, len(prompt))
        self.reset()
        feeding = list(prompt)
        for _ in range(min(max_tokens, self.bundle.manifest.context - len(prompt) + 1)):
            logits, token = self._step(feeding)
            feeding = [cast(int, token.item())]
            yield feeding[0], logits
            if feeding[0] in self.bundle.manifest.eos_token_ids:
                return

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
                "export with a larger --context"
            )

    def _next_length(self, remaining: int) -> int:
        """Return how many tokens to run next: as many at once as are not mostly padding; one where no more fit."""
        context = self.bundle.manifest.context
        lengths = {shape.length for shape in self.bundle.manifest.functions if shape.length > 1}
        fitting = [length for length in lengths if self.offset + length <= context]
        if remaining == 1 or not fitting:
            return 1
        return max((length for length in fitting if 2 * remaining >= length), default=min(fitting))

    def _run(self, length: int, tokens: Sequence[int]) -> mx.array:
        """Call the function of `length` on tokens, padded; nothing is evaluated."""
        self._grow(self.offset + length)
        count = [mx.array([len(tokens)], dtype=mx.int32)] if length > 1 else []
        padded = [*tokens, *[0] * (length - len(tokens))]
        inputs = [mx.array([padded], dtype=mx.int32), mx.array([self.offset], dtype=mx.int32), *count, *self._caches]
        # The caches that went in are let go with `inputs`: what anybody but the graph holds is copied, not updated.
        logits, *self._caches = self._call(FunctionShape(length, self.capacity), inputs)
        self.offset += len(tokens)
        return logits

    def _evaluate(self, results: list[mx.array]) -> None:
        try:
            mx.eval(results, self._caches)
        except RuntimeError as error:
            # MLX's words for a stream of another thread.
            if "in current thread" not in str(error):
                raise
            raise BundleError(
                f"MLX runs the functions of {self.bundle.directory} in the thread that used MLX first, and this is "
                f"{threading.current_thread().name}: run a bundle there, or in a process of its own"
            ) from None

    def _grow(self, tokens: int) -> None:
        """Move the caches to the next capacity that holds `tokens`."""
        capacity = next(size for size in self.bundle.manifest.capacities if size >= tokens)
        if capacity <= self.capacity:
            return
        room = [(0, 0), (0, 0), (0, capacity - self.capacity), (0, 0)]
        for index, array in enumerate(self._caches):
            # One at a time, so that two sizes of all of them are never there together.
            self._caches[index] = mx.pad(array, room)
            del array
            mx.eval(self._caches[index])
        self.capacity = capacity

    def _call(self, shape: FunctionShape, inputs: Sequence[mx.array]) -> Outputs:
        """Call a function, which is read from its file the first time."""
        path = self.bundle.directory / function_file(shape)
        try:
            if shape not in self._functions:
                self._functions[shape] = cast("Callable[..., Outputs]", mx.import_function(str(path)))
            outputs = self._functions[shape](*inputs, *self._weights)
        except (RuntimeError, ValueError) as error:
            said = one_line(str(error), 200)
            raise BundleError(
                f"{path}: MLX cannot run it as the manifest says ({said}); export the bundle anew"
            ) from None
        expected = [(spec.shape, getattr(mx, spec.dtype)) for spec in self.bundle.manifest.model.outputs(shape)]
        if [(output.shape, output.dtype) for output in outputs] != expected:
            raise BundleError(f"{path}: it gives other arrays than the manifest says; export the bundle anew")
        return outputs
