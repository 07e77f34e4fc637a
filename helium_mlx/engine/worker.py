"""The thread of an engine: everything of MLX happens here, since its streams belong to the thread that made them.

It loads the model and then goes round: it takes what callers ask for out of its inbox, and lets the scheduler take a
step (`scheduler.py`). Paused, it does the former only.
"""

import atexit
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar, cast

import mlx.core as mx
from mlx.utils import tree_map

from helium_mlx.checkpoint.checkpoint import open_checkpoint, weight_bytes
from helium_mlx.engine.channels import Inbox
from helium_mlx.engine.memory import MemoryBudget, ProcessLimits, prefix_bytes
from helium_mlx.engine.scheduler import Scheduler
from helium_mlx.engine.state import load_state, save_state
from helium_mlx.engine.tasks import without_locals
from helium_mlx.errors import CheckpointError, EngineError
from helium_mlx.files.hub import resolve
from helium_mlx.generation.prompt_cache import fingerprint_of
from helium_mlx.generation.request import CompletionRequest
from helium_mlx.interpreter_end import is_ending, watch_end
from helium_mlx.kv_cache.batch import BatchKVCache
from helium_mlx.kv_cache.memory import bytes_in_memory, bytes_per_token
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.loading import load_model
from helium_mlx.process import AFTER_A_FORK, is_forked_after_use
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

T = TypeVar("T")

_AFTER_A_FORK = f"{AFTER_A_FORK}, and make an engine there"

# How long the end of the interpreter waits for a step to end, in seconds.
_PATIENCE = 10.0


class EngineWorker:
    """Owns the thread, the model and the scheduler. The methods up to `_run` are for callers, from any thread."""

    def __init__(
        self,
        path_or_repo: str | Path,
        *,
        revision: str | None,
        subfolder: str | None,
        dtype: str | mx.Dtype | None,
        batch_size: int,
        prefill_step_size: int,
        memory_limit: int | None,
        cache_limit: int,
        prefix_cache_bytes: int | None,
    ) -> None:
        self.model: HeliumForCausalLM
        self.tokenizer: HeliumTokenizer
        self.scheduler: Scheduler
        self.is_paused = False
        self._source = (path_or_repo, revision, subfolder)
        self._dtype = dtype
        self._directory: Path
        self._fingerprint: dict[str, str]
        self._batch_size = batch_size
        self._prefill_step_size = prefill_step_size
        self._memory_limit = memory_limit
        self._prefix_cache_bytes = prefix_cache_bytes
        self._limits = ProcessLimits(cache_limit, memory_limit)
        self._inbox = Inbox()
        self._lock = threading.Lock()
        self._end_reason: str | None = None
        self._closing = False
        self._loaded: Future[None] = Future()
        self._process = os.getpid()
        # A daemon, as Python would wait for any other thread before it lets us end this one.
        self._thread = threading.Thread(target=self._run, name="helium-mlx-engine", daemon=True)

    def start(self) -> None:
        """Start the thread and wait until the model is loaded. Raises what loading raises."""
        if is_forked_after_use():
            raise EngineError(f"this process is a fork of one that had used MLX; {_AFTER_A_FORK}")
        atexit.register(self._close_at_exit)
        watch_end()
        self._thread.start()
        self._loaded.result()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def described(self) -> dict[str, object]:
        """Return what it is and does, without waiting for the thread, which may be anywhere or nowhere."""
        scheduler = self.scheduler if hasattr(self, "scheduler") else None
        state = "paused" if self.is_paused else "open"
        if not self.is_alive:
            state = "closed" if self._closing else "dead"
        return {
            "model": str(self._source[0]),
            "state": state,
            "rows": scheduler.running if scheduler else 0,
            "waiting": len(scheduler.waiting) + len(scheduler.preempted) if scheduler else 0,
            "memory_limit": self._memory_limit,
        }

    def require_usable(self) -> None:
        """Raise EngineError where nothing will be answered: after `close`, a death, or in a forked process."""
        told = self._end_reason if os.getpid() == self._process else None
        if said := told or self._why_gone():
            raise EngineError(said)

    def silence(self) -> str | None:
        """Return why nothing comes any more to those who wait, where they are not told; None if something may."""
        if self.is_paused and is_ending():
            return (
                self._why_gone()
                or "the program is ending, and the engine is paused; resume it or close it before the end"
            )
        return self._why_gone()

    def _why_gone(self) -> str | None:
        """Return why this process does not have the worker's thread, None if it has it."""
        if os.getpid() != self._process:
            return f"this engine belongs to process {self._process}; {_AFTER_A_FORK}"
        return None if self.is_alive else "the engine's worker has ended without a word; make a new one"

    def wake(self) -> None:
        """Let the worker look around. Takes no lock, so that a finalizer may call it anywhere."""
        self._inbox.wake()

    def call(self, function: Callable[[], T], *, queues: bool = False) -> "Future[T]":
        """Have a function called between two steps. Raises EngineError if nobody will.

        One that queues a request is called at the end too, so that the request ends like the others.
        """
        with self._lock:
            self.require_usable()
            return self._inbox.put(function, queues=queues)

    def stop(self) -> None:
        """Let the worker end after its step, without waiting for it."""
        self._closing = True
        self.wake()

    def close(self, patience: float | None = None) -> None:
        """Let the worker end, and wait for it, at most `patience` seconds."""
        if os.getpid() != self._process:
            return
        self.stop()
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join(patience)

    def _close_at_exit(self) -> None:
        self.close(_PATIENCE)

    # --- the thread

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._load()
            self._loaded.set_result(None)
            self._serve()
        # The last resort: whatever it was, those who wait have to learn of it.
        except BaseException as raised:
            error = raised
        self._finish(error)
        if not self._loaded.done():
            self._loaded.set_exception(error or EngineError("the engine was closed while it loaded"))

    def _load(self) -> None:
        path_or_repo, revision, subfolder = self._source
        self._directory = resolve(path_or_repo, revision=revision, subfolder=subfolder)
        checkpoint = open_checkpoint(self._directory)
        self.tokenizer = HeliumTokenizer.from_pretrained(self._directory)
        # Before they are read: what is over the limit shall not make the system swap.
        MemoryBudget(self._memory_limit, weight_bytes(checkpoint, self._dtype), 0).require_weights()
        self._limits.set()
        self.model = load_model(checkpoint, dtype=self._dtype)
        each = bytes_per_token(self.model.config, dtype=self.model.dtype)
        self._fingerprint = fingerprint_of(self.model, self.tokenizer)
        weights, given = bytes_in_memory(self.model), self._prefix_cache_bytes
        self.scheduler = Scheduler(
            self.model,
            self.tokenizer,
            MemoryBudget(self._memory_limit, weights, each),
            batch_size=self._batch_size,
            prefill_step_size=self._prefill_step_size,
            prefix_cache_bytes=prefix_bytes(weights, self._memory_limit) if given is None else given,
        )

    def _serve(self) -> None:
        worked = False
        while True:
            self._inbox.take(wait=not worked, is_over=lambda: self._closing)
            if self._closing:
                return
            if self.is_paused:
                worked = False
                self.scheduler.drop_cancelled()
            else:
                worked = self.scheduler.step()

    def _finish(self, error: BaseException | None) -> None:
        said = "the engine is closed; make a new one"
        if error is not None:
            said = f"the engine's worker has died: {type(error).__name__}: {error}; make a new engine"
        with self._lock:
            self._end_reason = said
        self._inbox.refuse(said)
        failure = None
        if error is not None:
            failure = EngineError(said)
            failure.__cause__ = without_locals(error)
        if hasattr(self, "scheduler"):
            self.scheduler.end(failure)
        if hasattr(self, "model"):
            self._free_weights()
        self._limits.restore()
        atexit.unregister(self._close_at_exit)
        # Else MLX takes this thread's streams down when it is gone, and aborts if the process ends at that moment.
        mx.clear_streams()

    # --- pause and resume

    def pause(self, *, keep_caches: bool) -> None:
        """Finish the step in flight, and free the weights, MLX's buffers and, unless kept, the caches of the batch."""
        if self.is_paused:
            return
        self.scheduler.preempt_all(keep_caches=keep_caches)
        self.is_paused = True
        self._free_weights()
        self._limits.restore()

    def resume(self) -> None:
        """Load the weights again. Raises CheckpointError, and stays paused, if they cannot be had or are others."""
        if not self.is_paused:
            return
        model = load_model(self._directory, dtype=self._dtype)
        if fingerprint_of(model, self.tokenizer) != self._fingerprint:
            raise CheckpointError(f"{self._directory}: was changed while the engine was paused; make a new engine")
        self._limits.set()
        self.model.update(model.parameters())
        self.is_paused = False

    def _free_weights(self) -> None:
        self.model.update(cast(dict, tree_map(lambda tensor: mx.zeros(0, tensor.dtype), self.model.parameters())))
        mx.synchronize()
        mx.clear_cache()

    # --- states on disk

    def save(self, number: int, request: CompletionRequest, path: Path, *, with_cache: bool) -> None:
        """Write a request with its generated tokens; see `EngineStream.save`."""
        held = [*request.prompt, *request.generated][:-1]
        cache = self.scheduler.cache_of(number) if with_cache and held else None
        if cache is not None:
            for layer in cache:
                layer.trim(layer.offset - len(held))
        save_state(path, request, cache or [], self.model, self._fingerprint)

    def load(self, path: Path) -> tuple[CompletionRequest, list[BatchKVCache] | None]:
        """Return a request from a file, and its cache as a batch of one."""
        request, cache = load_state(path, self.model, self.tokenizer, self._fingerprint)
        self.scheduler.require_room(request)
        if cache is None:
            return request, None
        layers = []
        for one in cache:
            layer = BatchKVCache([0])
            assert one.dtype is not None
            layer.restore(one.parts, offset=one.offset, written=one.written, dtype=one.dtype)
            layers.append(layer)
        return request, layers
