"""The thread behind an engine: everything of MLX happens here, since its streams belong to the thread that made them.

The worker goes round in turns. A turn takes what callers ask for, drops who was cancelled, admits who fits, and then
runs one step of a prompt (or of a text to score), one step of the batch, and one token of each request with a cache of
its own. So nobody waits longer for a long prompt than one step of it, and a cancellation is seen within a step.

Requests are admitted first come, first served, none overtaking, while there are places and memory. Whose reader is slow
is set aside with its cache and comes back first; if others need the memory and nothing runs that will free some, the
cache is let go and computed again.

An error in a step that several rows share is nobody's in particular: all are set aside and rebuilt from their tokens,
one by one. Who fails then fails alone; a row that three steps in a row have failed with is ended with the error.
"""

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar, cast

import mlx.core as mx
from mlx.utils import tree_map

from helium_mlx.checkpoint.checkpoint import open_checkpoint, weight_bytes
from helium_mlx.engine.channels import Channel, Inbox
from helium_mlx.engine.memory import MemoryBudget, ProcessLimits
from helium_mlx.engine.request import EngineRequest
from helium_mlx.engine.scheduler import MAX_FAILURES, PromptJob, Task
from helium_mlx.engine.state import load_state, save_state
from helium_mlx.engine.tasks import EngineRow, OwnRun, ScoreRun, without_locals
from helium_mlx.errors import CheckpointError, EngineError
from helium_mlx.files.hub import resolve
from helium_mlx.generation.decoding_batch import DecodingBatch, Parked, Prefilled, PromptRun, groups_of
from helium_mlx.generation.prompt_cache import fingerprint_of
from helium_mlx.generation.streaming import TOKENS_PER_CLEARING
from helium_mlx.interpreter_end import is_ending, watch_end
from helium_mlx.kv_cache.batch import BatchKVCache
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.make import copy_cache
from helium_mlx.kv_cache.memory import bytes_per_token
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.loading import load_model
from helium_mlx.process import is_forked_after_use
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

T = TypeVar("T")

_AFTER_A_FORK = "MLX cannot be used after a fork: start the process with spawn, and make an engine there"

# How long the end of the interpreter waits for a step to end, in seconds.
_PATIENCE = 10.0


class EngineWorker:
    """Owns the thread, the model and every request. The methods up to `_run` are for callers, from any thread."""

    def __init__(
        self,
        path_or_repo: str | Path,
        *,
        revision: str | None,
        dtype: str | mx.Dtype | None,
        batch_size: int,
        prefill_step_size: int,
        memory_limit: int | None,
        cache_limit: int,
    ) -> None:
        self.prefill_step_size = prefill_step_size
        self.model: HeliumForCausalLM
        self.tokenizer: HeliumTokenizer
        self.budget: MemoryBudget
        self.dtype: mx.Dtype
        self.is_paused = False
        self._source = (path_or_repo, revision, dtype)
        self._directory: Path
        self._fingerprint: dict[str, str]
        self._batch_size = batch_size
        self._memory_limit = memory_limit
        self._limits = ProcessLimits(cache_limit, memory_limit)
        self._inbox = Inbox()
        self._lock = threading.Lock()
        self._end_reason: str | None = None
        self._closing = False
        self._loaded: Future[None] = Future()
        self._waiting: deque[Task] = deque()
        self._aside: dict[EngineRow, Parked | None] = {}
        self._jobs: deque[PromptJob | ScoreRun] = deque()
        self._ready: list[Prefilled] = []
        self._returning: list[Parked] = []
        self._own: list[OwnRun] = []
        self._batch: DecodingBatch
        self._turns = 0
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

    def require_usable(self) -> None:
        """Raise EngineError where nothing will be answered: after `close`, a death, or in a forked process."""
        told = self._end_reason if os.getpid() == self._process else None
        if said := told or self._loss():
            raise EngineError(said)

    def silence(self) -> str | None:
        """Return why nothing comes any more to those who wait, where they are not told; None if something may."""
        if self.is_paused and is_ending():
            return (
                self._loss() or "the program is ending, and the engine is paused; resume it or close it before the end"
            )
        return self._loss()

    def _loss(self) -> str | None:
        """Return how this process lacks the worker's thread, None if it has it."""
        if os.getpid() != self._process:
            return f"this engine belongs to process {self._process}; {_AFTER_A_FORK}"
        return None if self.is_alive else "the engine's worker has ended without a word; make a new one"

    def wake(self) -> None:
        """Let the worker look around. Takes no lock, so that a finalizer may call it anywhere."""
        self._inbox.wake()

    def call(self, function: Callable[[], T], *, queues: bool = False) -> "Future[T]":
        """Have a function called between two turns. Raises EngineError if nobody will.

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
        path_or_repo, revision, dtype = self._source
        self._directory = resolve(path_or_repo, revision=revision)
        checkpoint = open_checkpoint(self._directory)
        self.tokenizer = HeliumTokenizer.from_pretrained(self._directory)
        # Before they are read: what is over the limit shall not make the system swap.
        MemoryBudget(self._memory_limit, weight_bytes(checkpoint, dtype), 0).require_weights()
        self._limits.set()
        self.model = load_model(checkpoint, dtype=dtype)
        self.dtype = self.model.model.norm.weight.dtype
        weights = sum(tensor.nbytes for tensor in self.model.tensors().values())
        self.budget = MemoryBudget(self._memory_limit, weights, bytes_per_token(self.model.config, dtype=self.dtype))
        self._fingerprint = fingerprint_of(self.model, self.tokenizer)
        self._batch = DecodingBatch(self.model)

    def _serve(self) -> None:
        worked = False
        while True:
            self._take_calls(wait=not worked)
            if self._closing:
                return
            self._drop_cancelled(self._tasks())
            worked = not self.is_paused and self._turn()

    def _take_calls(self, *, wait: bool) -> None:
        self._inbox.take(wait=wait, is_over=lambda: self._closing)

    def _turn(self) -> bool:
        """Take a turn; return whether there was anything to do."""
        worked = [self._admit(), self._prompt_step(), self._batch_step(), self._own_steps()]
        self._turns += 1
        if self._turns % TOKENS_PER_CLEARING == 0:
            mx.clear_cache()
        return any(worked)

    def _finish(self, error: BaseException | None) -> None:
        said = "the engine is closed; make a new one"
        if error is not None:
            said = f"the engine's worker has died: {type(error).__name__}: {error}; make a new engine"
        with self._lock:
            self._end_reason = said
        self._inbox.refuse(said)
        failure = EngineError(said)
        if error is not None:
            failure.__cause__ = without_locals(error)
        for task in self._tasks():
            if error is None:
                task.cancel()
            else:
                task.fail(failure)
        for tasks in (self._waiting, self._aside, self._jobs, self._ready, self._returning, self._own):
            tasks.clear()
        if hasattr(self, "_batch"):
            self._batch.clear()
        if hasattr(self, "model"):
            self._free_weights()
        self._limits.restore()
        atexit.unregister(self._close_at_exit)
        # Else MLX takes this thread's streams down when it is gone, and aborts if the process ends at that moment.
        mx.clear_streams()

    # --- who is there

    def _rows(self) -> list[EngineRow]:
        """The rows that run, wherever they are."""
        prompts = [row for job in self._jobs if isinstance(job, PromptJob) for row in job.rows]
        joining = [each.row for each in [*self._ready, *self._returning]]
        return [row for row in cast("list[EngineRow]", [*prompts, *joining, *self._batch.unread]) if not row.is_over]

    def _scores(self) -> list[ScoreRun]:
        return [job for job in self._jobs if isinstance(job, ScoreRun)]

    def _tasks(self) -> list[Task]:
        running = self._rows() if hasattr(self, "_batch") else []
        return [*self._waiting, *self._aside, *running, *self._scores(), *self._own]

    def _drop_cancelled(self, tasks: Iterable[Task]) -> None:
        found = [task for task in tasks if task.is_cancelled]
        for task in found:
            task.cancel()
        if found:
            self._waiting = deque(task for task in self._waiting if not task.is_over)
            self._aside = {row: parked for row, parked in self._aside.items() if not row.is_over}
            self._jobs = deque(job for job in self._jobs if not job.is_over)
            self._ready = [each for each in self._ready if not cast(EngineRow, each.row).is_over]
            self._returning = [each for each in self._returning if not cast(EngineRow, each.row).is_over]
            self._own = [run for run in self._own if not run.is_over]

    # --- admission

    def add(self, number: int, request: EngineRequest, channel: Channel, parked: list[BatchKVCache] | None) -> None:
        """Queue a request, with the cache of its tokens but the last, if there is one."""
        try:
            if request.own_cache.is_wanted:
                self._waiting.append(
                    OwnRun(
                        number,
                        request,
                        channel,
                        self.model,
                        self.tokenizer,
                        prefill_step_size=self.prefill_step_size,
                        between=self._between_prompt_steps,
                    )
                )
                return
            row = EngineRow(number, request, channel, self.model, self.tokenizer)
        except Exception as error:
            channel.fail(error)
            return
        if parked is None:
            self._waiting.append(row)
        else:
            self._aside[row] = Parked(row, parked, mx.array(row.prompt[-1:], dtype=mx.uint32))

    def add_score(self, run: ScoreRun) -> None:
        """Queue a text to score."""
        self._waiting.append(run)

    def _admit(self) -> bool:
        """Let in who fits; return whether anybody did. Those who were set aside go first."""
        admitted, count = list[EngineRow](), 0
        for task in [*(row for row in self._aside if not row.channel.is_full), *self._waiting]:
            if not self._has_place(admitted) or not self._make_room(task, admitted):
                break
            count += 1
            if isinstance(task, EngineRow) and task in self._aside:
                parked = self._aside.pop(task)
                if parked is not None:
                    self._returning.append(parked)
                    continue
            else:
                self._waiting.popleft()
            if isinstance(task, EngineRow):
                admitted.append(task)
            elif isinstance(task, OwnRun):
                self._own.append(task)
            else:
                self._jobs.append(task)
        self._start_prompts(admitted)
        return count > 0

    def _start_prompts(self, rows: list[EngineRow]) -> None:
        suspects = [[row] for row in rows if row.failures]
        sound = [row for row in rows if not row.failures]
        groups = groups_of([len(row.prompt) for row in sound], self.prefill_step_size)
        for group in [*suspects, *([sound[place] for place in sorted(group)] for group in groups)]:
            for row in group:
                row.start()
            run = PromptRun(self.model, [row.prompt for row in group], step_size=self.prefill_step_size)
            self._jobs.append(PromptJob(group, run))

    def _has_place(self, admitted: list[EngineRow]) -> bool:
        return len(self._rows()) + len(admitted) + len(self._scores()) + len(self._own) < self._batch_size

    def _make_room(self, task: Task, admitted: list[EngineRow]) -> bool:
        """Return whether a task fits into memory, caches of those set aside let go of where that helps."""
        if self.budget.limit is None:
            return True
        while not self.budget.allows(self._needed(task, admitted)):
            evictable = [row for row, parked in self._aside.items() if parked is not None and row is not task]
            # While others run, memory comes free by itself; what is evicted has to be computed again.
            if not evictable or admitted or self._is_running:
                return False
            self._aside[evictable[-1]] = None
        return True

    @property
    def _is_running(self) -> bool:
        """Whether anything goes on without waiting for its reader."""
        return bool(self._rows() or self._scores()) or any(not run.channel.is_full for run in self._own)

    def _needed(self, task: Task, admitted: list[EngineRow]) -> int:
        """Return the bytes of all caches if the task were admitted too."""
        decoding = cast("list[EngineRow]", self._batch.held)
        joining = [row for row in [*self._rows(), *admitted] if row not in decoding]
        own, scores = list(self._own), self._scores()
        if isinstance(task, EngineRow):
            joining.append(task)
        elif isinstance(task, OwnRun):
            own.append(task)
        else:
            scores.append(task)
        kept = sum(row.request.span for row, parked in self._aside.items() if parked is not None and row is not task)
        batch = self.budget.batch_bytes(
            [row.request.span for row in [*decoding, *joining]], [len(row.prompt) for row in joining]
        )
        alone = sum(run.request.own_cache.bytes_for(self.model.config, run.request.span, self.dtype) for run in own)
        return batch + alone + self.budget.bytes_per_token * (kept + sum(run.tokens for run in scores))

    # --- steps

    def _prompt_step(self) -> bool:
        if not self._jobs:
            return False
        job = self._jobs.popleft()
        if isinstance(job, ScoreRun):
            job.advance()
            if not job.is_over:
                self._jobs.append(job)
            return True
        try:
            logits = job.run.advance()
            if logits is not None:
                # Of a suspect one has to know now; of others, the batch need not wait for it.
                (mx.eval if job.rows[0].failures else mx.async_eval)(logits)
        except Exception as error:
            self._prompts_failed(job, error)
            return True
        if logits is None:
            self._jobs.append(job)
        else:
            self._ready += [
                Prefilled(row, job.run.layers, place, logits[place : place + 1])
                for place, row in enumerate(job.rows)
                if not row.is_over
            ]
        return True

    def _prompts_failed(self, job: PromptJob, error: Exception) -> None:
        if len(job.rows) == 1:
            job.rows[0].fail(error)
            return
        for row in job.rows:
            row.failures += 1
            self._aside[row] = None

    def _batch_step(self) -> bool:
        if self._batch.is_empty and not self._ready and not self._returning:
            return False
        arrivals, returning = self._ready, self._returning
        self._ready, self._returning = [], []
        joining = [each.row for each in [*arrivals, *returning]]
        rows = cast("list[EngineRow]", [*self._batch.unread, *joining])
        try:
            leaving = self._set_full_aside()
            read = self._batch.advance(arrivals, returning, leaving=leaving)
        except Exception as error:
            self._step_failed(rows, error)
            return True
        for row, decoded in read:
            cast(EngineRow, row).deliver(decoded)
        self._aside = {row: parked for row, parked in self._aside.items() if not row.is_over}
        return True

    def _set_full_aside(self) -> list[EngineRow]:
        """Set the rows aside whose readers are slow: they get the token in flight, and no further one for now."""
        full = [row for row in cast("list[EngineRow]", self._batch.rows) if row.channel.is_full]
        for row in full:
            self._aside[row] = self._batch.parked(row)
        return full

    def _step_failed(self, rows: list[EngineRow], error: Exception) -> None:
        self._batch.clear()
        for row in rows:
            self._aside.pop(row, None)
            row.failures += 1
            if row.is_over:
                continue
            if row.failures > MAX_FAILURES:
                row.fail(error)
                continue
            try:
                row.rewind()
            except Exception as own:
                row.fail(own)
                continue
            self._aside[row] = None
        mx.clear_cache()

    def _own_steps(self) -> bool:
        worked, in_prompt = False, any(run.is_running for run in self._own)
        for run in list(self._own):
            # It may have been paused in the prompt of the one before.
            if self.is_paused:
                break
            # Between the steps of one's prompt, the others that are past theirs go on.
            if run.is_over or run.is_running or run.channel.is_full or (in_prompt and not run.is_past_prompt):
                continue
            run.advance()
            worked = True
        self._own = [run for run in self._own if not run.is_over]
        return worked

    def _between_prompt_steps(self) -> None:
        """Let the others take a turn while a run of its own is in its prompt, and stay here while it is paused."""
        (running,) = (run for run in self._own if run.is_running)
        self._take_calls(wait=False)
        while self.is_paused and not self._closing and not running.is_cancelled:
            self._drop_cancelled(task for task in self._tasks() if task is not running)
            self._take_calls(wait=True)
        if self._closing:
            for run in self._own:
                run.channel.cancelled = True
        self._drop_cancelled(task for task in self._tasks() if task is not running)
        if not self.is_paused:
            self._turn()

    # --- pause and resume

    def pause(self, *, keep_caches: bool) -> None:
        """Finish the step in flight, and free the weights, MLX's buffers and, unless kept, the caches of the batch."""
        if self.is_paused:
            return
        rows = self._rows()
        decoding = cast("list[EngineRow]", self._batch.rows)
        kept: dict[EngineRow, Parked | None] = {cast(EngineRow, each.row): each for each in self._returning}
        kept |= self._aside
        if keep_caches:
            kept |= {row: self._batch.parked(row) for row in decoding}
        try:
            read = self._batch.advance([], leaving=decoding)
            mx.eval([[*layer.state, each.token] for each in kept.values() if each for layer in each.layers])
        except Exception:
            # What was in flight is computed again at the end of the pause, and fails there if it has to.
            self._batch.clear()
            read, kept = [], {}
        for row, decoded in read:
            cast(EngineRow, row).deliver(decoded)
        for row in rows:
            if not row.is_over and row not in kept:
                row.rewind()
        scores = self._scores()
        for run in scores:
            run.rewind()
        self._waiting.extendleft(reversed(scores))
        everybody = [row for row in [*rows, *self._aside] if not row.is_over]
        self._aside = {row: kept.get(row) if keep_caches else None for row in everybody}
        self._jobs.clear()
        self._ready, self._returning = [], []
        self.is_paused = True
        self._free_weights()
        self._limits.restore()

    def resume(self) -> None:
        """Load the weights again. Raises CheckpointError, and stays paused, if they cannot be had or are others."""
        if not self.is_paused:
            return
        model = load_model(self._directory, dtype=self._source[2])
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

    def save(self, number: int, request: EngineRequest, path: Path, *, with_cache: bool) -> None:
        """Write a request behind its generated tokens; see `EngineStream.save`."""
        held = [*request.prompt, *request.generated][:-1]
        cache = self._cache_of(number) if with_cache and held else None
        if cache is not None:
            for layer in cache:
                layer.trim(layer.offset - len(held))
        save_state(path, request, cache or [], self.model, self._fingerprint)

    def _cache_of(self, number: int) -> list[KVCache] | None:
        """Return a copy of the cache of a row, if it has one of its own or is in the batch."""
        parked = {row.number: each for row, each in self._aside.items() if each is not None}
        parked |= {cast(EngineRow, each.row).number: each for each in self._returning}
        for row in cast("list[EngineRow]", self._batch.rows):
            if row.number == number:
                return list[KVCache](self._batch.parked(row).layers)
        return list[KVCache](copy_cache(parked[number].layers)) if number in parked else None

    def load(self, path: Path) -> tuple[EngineRequest, list[BatchKVCache] | None]:
        """Return a request from a file, and its cache as a batch of one."""
        request, cache = load_state(path, self.model, self.tokenizer, self._fingerprint)
        self.budget.require(self.cost_of(request), request.span)
        if cache is None:
            return request, None
        layers = []
        for one in cache:
            layer = BatchKVCache([0])
            assert one.dtype is not None
            layer.restore(one.parts, offset=one.offset, written=one.written, dtype=one.dtype)
            layers.append(layer)
        return request, layers

    def cost_of(self, request: EngineRequest) -> int:
        """Return the bytes of cache that a request needs if nobody is beside it. For any thread."""
        if request.own_cache.is_wanted:
            return request.own_cache.bytes_for(self.model.config, request.span, self.dtype)
        return self.budget.batch_bytes([request.span])
