"""Who runs next. No thread, no lock, no clock: `step` does what is due, and whoever has a scheduler calls it.

A step drops who was cancelled, admits who fits, and then runs one step of a prompt (or of a text to score), one step of
the batch, and one token of each unbatched request. So nobody waits longer for a long prompt than one step of it, and a
cancellation is seen within a step.

Requests are *waiting* until they are admitted: first come, first served, as long as there are places and memory. Then
they are *running*: in their prompt, about to join the batch, in it, or unbatched. A request whose reader is slow is
*preempted* with its cache and comes back before those that wait. If others need the memory, and nothing that runs will
free any, that cache is evicted, and computed again later.

What prompts and completions have computed is kept in a tree of prefixes, in the memory that requests leave: a prompt
runs from where it parts from all of them. One that begins like a prompt on its way is *deferred*, until the other's
steps are in the tree.

An error in a step that several rows share belongs to none of them: prefixes are let go of, in case memory was lacking,
and all rows are preempted and retried one by one, rebuilt from their tokens. Who fails then fails alone; a row whose
step fails a fourth time in a row is ended with the error.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from helium_mlx.engine.channels import Channel
from helium_mlx.engine.memory import MemoryBudget
from helium_mlx.engine.prefix_tree import BLOCK, PrefixTree
from helium_mlx.engine.tasks import EngineRow, ScoreRun, UnbatchedRun
from helium_mlx.generation.decoding_batch import DecodingBatch, PreemptedRow, Prefilled, PromptRun, groups_of
from helium_mlx.generation.request import CompletionRequest
from helium_mlx.generation.streaming import TOKENS_PER_CLEARING
from helium_mlx.kv_cache.batch import BatchKVCache, copied_block
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.make import copy_cache
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Task = EngineRow | UnbatchedRun | ScoreRun

# Steps in a row that may fail with a row in them before it is ended.
MAX_FAILURES = 3


@dataclass(frozen=True)
class PromptJob:
    """Rows whose prompts are run together."""

    rows: list[EngineRow]
    run: PromptRun

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(row.is_over for row in self.rows)


class Scheduler:
    """All requests to one model, and what each of them waits for. Only `require_room` and `running` are for any thread.

    `waiting` are those who have not been admitted; `preempted` those who were, with a cache to come back with, or None
    where it has to be computed again; `deferred` those who wait for a beginning; `prompts` what is in its prompt, in
    the order of its turns; `prefilled` and `returning` the rows that join the batch with its next step; `unbatched` the
    requests that never do. `prefixes` has at most `prefix_cache_bytes`.
    """

    def __init__(
        self,
        model: HeliumForCausalLM,
        tokenizer: HeliumTokenizer,
        budget: MemoryBudget,
        *,
        batch_size: int,
        prefill_step_size: int,
        prefix_cache_bytes: int = 0,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.budget = budget
        self.batch_size = batch_size
        self.prefill_step_size = prefill_step_size
        self.prefix_cache_bytes = prefix_cache_bytes
        self.prefixes = PrefixTree(budget.bytes_per_token)
        self.waiting: deque[Task] = deque()
        self.preempted: dict[EngineRow, PreemptedRow[EngineRow] | None] = {}
        self.deferred: list[EngineRow] = []
        self.prompts: deque[PromptJob | ScoreRun | UnbatchedRun] = deque()
        self.prefilled: list[Prefilled[EngineRow]] = []
        self.returning: list[PreemptedRow[EngineRow]] = []
        self.batch = DecodingBatch[EngineRow](model)
        self.unbatched: list[UnbatchedRun] = []
        self._steps = 0

    # --- what callers ask for

    def add(
        self,
        number: int,
        request: CompletionRequest,
        channel: Channel,
        *,
        cache: list[KVCache] | None = None,
        held: list[BatchKVCache] | None = None,
    ) -> None:
        """Queue a request.

        An unbatched request brings its empty `cache`. A resumed one may bring the cache of all its tokens but the last,
        in `held`.
        """
        try:
            if cache is not None:
                step_size = self.prefill_step_size
                self.waiting.append(
                    UnbatchedRun(request, channel, cache, self.model, self.tokenizer, prefill_step_size=step_size)
                )
                return
            row = EngineRow(number, request, channel, self.model, self.tokenizer)
        except Exception as error:
            channel.fail(error)
            return
        if held is None:
            self.waiting.append(row)
        else:
            self.preempted[row] = PreemptedRow(row, held, mx.array(row.prompt[-1:], dtype=mx.uint32))

    def add_score(self, run: ScoreRun) -> None:
        """Queue a text to score."""
        self.waiting.append(run)

    def require_room(self, request: CompletionRequest) -> None:
        """Raise EngineMemoryError if a request would not fit even alone. For any thread."""
        self.budget.require(self._cost_of(request), request.span)

    def _cost_of(self, request: CompletionRequest) -> int:
        """Return the bytes of cache that a request needs if nobody is beside it."""
        if request.options.unbatched:
            return request.options.cache_bytes(self.model.config, request.span, self.model.dtype)
        return self.budget.batch_bytes([request.span])

    def cache_of(self, number: int) -> list[KVCache] | None:
        """Return a copy of the cache of a row, if it has one of its own or is in the batch."""
        kept = {row.number: each for row, each in self.preempted.items() if each is not None}
        kept |= {each.row.number: each for each in self.returning}
        for row in self.batch.rows:
            if row.number == number:
                return list[KVCache](self.batch.extract(row).layers)
        return list[KVCache](copy_cache(kept[number].layers)) if number in kept else None

    @property
    def tasks(self) -> list[Task]:
        """Everybody who is not over."""
        return [*self.waiting, *self.preempted, *self._rows(), *self._scores(), *self.unbatched]

    def step(self) -> bool:
        """Do what is due; return whether there was anything."""
        self.drop_cancelled()
        worked = [self._admit(), self._prompt_step(), self._batch_step(), self._unbatched_steps()]
        self._steps += 1
        if self._steps % TOKENS_PER_CLEARING == 0:
            mx.clear_cache()
        return any(worked)

    def drop_cancelled(self) -> None:
        """End those who were cancelled, and let go of what they held."""
        found = [task for task in self.tasks if task.is_cancelled]
        for task in found:
            task.cancel()
        if found:
            self._forget_ended()

    def preempt_all(self, *, keep_caches: bool) -> None:
        """Read the step in flight and take everybody out of the batch, with their caches or without.

        Unbatched requests stay where they are, with their caches: one that forgets cannot be made again.
        """
        rows, decoding = self._rows(), self.batch.rows
        kept = {each.row: each for each in self.returning} | self.preempted
        if keep_caches:
            kept |= {row: self.batch.extract(row) for row in decoding}
        try:
            read = self.batch.advance([], leaving=decoding)
            mx.eval([[*layer.state, each.token] for each in kept.values() if each for layer in each.layers])
        except Exception:
            # What was in flight is computed again when all resume, and fails there if it has to.
            self.batch.clear()
            read, kept = [], {}
        for row, decoded in read:
            row.deliver(decoded)
        for row in rows:
            if not row.is_over and row not in kept:
                row.rewind()
        for run in reversed(self._scores()):
            run.rewind()
            self.waiting.appendleft(run)
        everybody = [row for row in [*rows, *self.preempted] if not row.is_over]
        self.preempted = {row: kept.get(row) if keep_caches else None for row in everybody}
        self.prompts = deque(job for job in self.prompts if isinstance(job, UnbatchedRun))
        self.deferred, self.prefilled, self.returning = [], [], []
        if not keep_caches:
            self.prefixes.shrink(0)

    def end(self, error: Exception | None) -> None:
        """Cancel everybody, or fail them with an error, and let go of everything."""
        for task in self.tasks:
            if error is None:
                task.cancel()
            else:
                task.fail(error)
        for tasks in (self.waiting, self.deferred, self.prompts, self.prefilled, self.returning, self.unbatched):
            tasks.clear()
        self.preempted.clear()
        self.batch.clear()
        self.prefixes.shrink(0)

    # --- who is there

    @property
    def running(self) -> int:
        """How many have been admitted and are not over. For any thread: another's may be off by those that move."""
        return len(self._rows()) + len(self._scores()) + len(self.unbatched)

    def _rows(self) -> list[EngineRow]:
        """The rows that run, wherever they are."""
        # Copies in one go: another thread may ask while they change.
        prompts = [row for job in [*self.prompts] if isinstance(job, PromptJob) for row in job.rows]
        joining = [each.row for each in [*self.prefilled, *self.returning]]
        return [row for row in [*self.deferred, *prompts, *joining, *self.batch.unread] if not row.is_over]

    def _scores(self) -> list[ScoreRun]:
        return [job for job in [*self.prompts] if isinstance(job, ScoreRun)]

    def _forget_ended(self) -> None:
        self.waiting = deque(task for task in self.waiting if not task.is_over)
        self.preempted = {row: held for row, held in self.preempted.items() if not row.is_over}
        self.deferred = [row for row in self.deferred if not row.is_over]
        self.prompts = deque(job for job in self.prompts if not job.is_over)
        self.prefilled = [each for each in self.prefilled if not each.row.is_over]
        self.returning = [each for each in self.returning if not each.row.is_over]
        self.unbatched = [run for run in self.unbatched if not run.is_over]

    # --- admission

    def _admit(self) -> bool:
        """Let in who fits; return whether anybody did. Those who were preempted go first."""
        admitted, count = list[EngineRow](), 0
        for task in [*(row for row in self.preempted if not row.channel.is_full), *self.waiting]:
            if not self._has_place(admitted) or not self._make_room(task, admitted):
                break
            count += 1
            if isinstance(task, EngineRow) and task in self.preempted:
                held = self.preempted.pop(task)
                if held is not None:
                    self.returning.append(held)
                    continue
            else:
                self.waiting.popleft()
            if isinstance(task, EngineRow):
                admitted.append(task)
                continue
            self.prompts.append(task)
            if isinstance(task, UnbatchedRun):
                self.unbatched.append(task)
        self._start_prompts(admitted)
        return count > 0

    def _start_prompts(self, rows: list[EngineRow]) -> None:
        """Start the prompts of rows, and of those that were deferred and need not be any longer."""
        retried = [[row] for row in rows if row.failures]
        others = self._without_deferred([row for row in rows if not row.failures])
        held = [self._held_of(row) for row in others]
        groups = groups_of([len(row.prompt) for row in others], self.prefill_step_size, held)
        for group in [*retried, *([others[place] for place in sorted(group)] for group in groups)]:
            self._start_together(group)

    def _start_together(self, group: list[EngineRow]) -> None:
        prompts = [row.prompt for row in group]
        longest = max(map(len, prompts))
        # Up to the first column in which somebody has something new.
        start = min(longest - len(prompt) + self._held_of(row) for row, prompt in zip(group, prompts, strict=True))
        counts = [max(start - (longest - len(prompt)), 0) for prompt in prompts]
        held = [self.prefixes.take(prompt[:count]) for prompt, count in zip(prompts, counts, strict=True)]
        for row, count in zip(group, counts, strict=True):
            row.start(count)
        run = PromptRun(self.model, prompts, step_size=self.prefill_step_size, held=held)
        self.prompts.append(PromptJob(group, run))

    def _without_deferred(self, rows: list[EngineRow]) -> list[EngineRow]:
        """Return the rows to start now, of these and of the deferred.

        Deferred is who begins like a prompt on its way, a block further than the tree has it, until the tree has it.
        """
        on_their_way = [row for job in self.prompts if isinstance(job, PromptJob) for row in job.rows]
        now, before, self.deferred = list[EngineRow](), self.deferred, []
        for row, further in [*((row, 1) for row in before), *((row, BLOCK) for row in rows)]:
            if self._begins_like(row, on_their_way, further) or self._begins_like(row, now, BLOCK):
                self.deferred.append(row)
            else:
                now.append(row)
        return now

    def _begins_like(self, row: EngineRow, others: Sequence[EngineRow], further: int) -> bool:
        """Return whether a prompt begins like one of others, so many tokens further than the tree has it."""
        prompt, shared = row.prompt, self._held_of(row) + further
        if shared >= len(prompt) or shared * self.prefixes.bytes_per_token > self.prefix_cache_bytes:
            return False
        return any(prompt[:shared] == other.prompt[:shared] for other in others)

    def _held_of(self, row: EngineRow) -> int:
        """Return how many tokens a prompt need not run. The last is always run."""
        return self.prefixes.covered(row.prompt[:-1])

    def _has_place(self, admitted: list[EngineRow]) -> bool:
        return self.running + len(admitted) < self.batch_size

    def _make_room(self, task: Task, admitted: list[EngineRow]) -> bool:
        """Return whether a task fits into memory; caches of the preempted are evicted where that helps."""
        if self.budget.limit is None:
            return True
        while not self.budget.allows(needed := self._needed(task, admitted)):
            evictable = [row for row, held in self.preempted.items() if held is not None and row is not task]
            # While others run, memory comes free by itself; what is evicted has to be computed again.
            if not evictable or admitted or self._is_running:
                return False
            self.preempted[evictable[-1]] = None
        self.prefixes.shrink(self._room_for_prefixes(needed))
        return True

    @property
    def _is_running(self) -> bool:
        """Whether anybody advances without waiting for a reader."""
        return bool(self._rows() or self._scores()) or any(not run.channel.is_full for run in self.unbatched)

    def _needed(self, task: Task | None, admitted: list[EngineRow]) -> int:
        """Return the bytes of all caches of requests, if the task were admitted too."""
        decoding = self.batch.held
        joining = [row for row in [*self._rows(), *admitted] if row not in decoding]
        unbatched, scores = list(self.unbatched), self._scores()
        if isinstance(task, EngineRow):
            joining.append(task)
        elif isinstance(task, UnbatchedRun):
            unbatched.append(task)
        elif task is not None:
            scores.append(task)
        kept = sum(row.request.span for row, held in self.preempted.items() if held is not None and row is not task)
        batch = self.budget.batch_bytes(
            [row.request.span for row in [*decoding, *joining]], [len(row.prompt) for row in joining]
        )
        alone = sum(self._cost_of(run.request) for run in unbatched)
        return batch + alone + self.budget.bytes_per_token * (kept + sum(run.tokens for run in scores))

    # --- prefixes

    def _room_for_prefixes(self, needed: int) -> int:
        """Return how many bytes of prefixes there may be beside caches of so many."""
        left = self.budget.left_beside(needed)
        return self.prefix_cache_bytes if left is None else min(self.prefix_cache_bytes, left)

    def _keep_prompts(self, job: PromptJob) -> None:
        """Keep what has been computed of prompts. It is their turn, so that they are in no queue."""
        if self.prefix_cache_bytes:
            room = self._room_for_prefixes(self._needed(None, job.rows))
            for place, row in enumerate(job.rows):
                self._keep(row, job.run.layers, place, room)

    def _keep_leaving(self) -> None:
        """Keep the text of rows that are about to leave the batch since they have ended."""
        leaving = [row for row in self.batch.held if not row.continues and row.channel.state != "failed"]
        if self.prefix_cache_bytes and leaving:
            room = self._room_for_prefixes(self._needed(None, []))
            for row in leaving:
                self._keep(row, *self.batch.cache_of(row), room)

    def _keep(self, row: EngineRow, layers: list[BatchKVCache], place: int, room: int) -> None:
        tokens = row.prompt[: max(layers[0].lengths[place], 0)]
        self.prefixes.add(tokens, lambda start, end: copied_block(layers, place, start, end), room)

    # --- steps

    def _prompt_step(self) -> bool:
        """Run a step of the prompt whose turn it is."""
        if not self.prompts:
            return False
        job = self.prompts.popleft()
        if isinstance(job, PromptJob):
            self._run_prompts(job)
        else:
            job.advance()
            if job.is_in_prompt:
                self.prompts.append(job)
        return True

    def _run_prompts(self, job: PromptJob) -> None:
        try:
            logits = job.run.advance()
            if logits is not None:
                # Whether a retried row fails has to be known now; for others, the batch need not wait.
                (mx.eval if job.rows[0].failures else mx.async_eval)(logits)
            self._keep_prompts(job)
        except Exception as error:
            self._prompts_failed(job, error)
            return
        if logits is None:
            self.prompts.append(job)
        else:
            self.prefilled += [
                Prefilled(row, job.run.layers, place, logits[place : place + 1])
                for place, row in enumerate(job.rows)
                if not row.is_over
            ]

    def _prompts_failed(self, job: PromptJob, error: Exception) -> None:
        if len(job.rows) == 1:
            job.rows[0].fail(error)
            return
        self.prefixes.shrink(0)
        for row in job.rows:
            row.failures += 1
            self.preempted[row] = None

    def _batch_step(self) -> bool:
        if self.batch.is_empty and not self.prefilled and not self.returning:
            return False
        arrivals, returning = self.prefilled, self.returning
        self.prefilled, self.returning = [], []
        rows = [*self.batch.unread, *(each.row for each in [*arrivals, *returning])]
        try:
            self._keep_leaving()
            leaving = self._preempt_slow_readers()
            read = self.batch.advance(arrivals, returning, leaving=leaving)
        except Exception as error:
            self._batch_failed(rows, error)
            return True
        for row, decoded in read:
            row.deliver(decoded)
        if not all(decoded.is_sound for _, decoded in read):
            # Whatever made them so may have been at work before.
            self.prefixes.shrink(0)
        self.preempted = {row: held for row, held in self.preempted.items() if not row.is_over}
        return True

    def _preempt_slow_readers(self) -> list[EngineRow]:
        """Preempt the rows whose channels are full: they get the token in flight, and no further one for now."""
        full = [row for row in self.batch.rows if row.channel.is_full]
        for row in full:
            self.preempted[row] = self.batch.extract(row)
        return full

    def _batch_failed(self, rows: Iterable[EngineRow], error: Exception) -> None:
        """Have all rows of a step that failed retried, but for those that have failed too often."""
        self.batch.clear()
        self.prefixes.shrink(0)
        for row in rows:
            self.preempted.pop(row, None)
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
            self.preempted[row] = None
        mx.clear_cache()

    def _unbatched_steps(self) -> bool:
        """Let each unbatched request that is past its prompt take a token, if its reader has room."""
        ready = [
            run
            for run in self.unbatched
            if not (run.is_in_prompt or run.is_over or run.is_cancelled or run.channel.is_full)
        ]
        for run in ready:
            run.advance()
        self.unbatched = [run for run in self.unbatched if not run.is_over]
        return bool(ready)
