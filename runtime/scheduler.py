"""Continuous batching: a bounded queue, admission by KV blocks, chunked prefill, one decode batch.

One thread calls `step`; any thread may `submit` and `cancel`. A request is admitted when the pool
can hold its prompt and all tokens it may generate, and keeps these blocks to its end: pruned
generations cannot be recomputed, so nothing is ever preempted.

What goes wrong in the part of a step that belongs to one request (its prompt, its sampling, its
callback) ends that request alone. The forward pass of a decode batch belongs to all of its rows:
an exception there ends them, and the line behind them goes on.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..core.errors import DyCokeError, TimeLimitError
from .blocks import BlockPool, blocks_for
from .line import Line
from .request import Event, Finish, Request, check_request
from .selection import StepTrace, Trace
from .sequence import Sequence
from .stages import DECODE_STEP, PREFILL, SAMPLE
from .steps import Chunk, Lane, Runner, StepLogits


@dataclass(frozen=True)
class EngineLimits:
    """max_batch: sequences that hold blocks at once; max_queue: requests that wait beside them;
    prefill_chunk: prompt tokens per step, of one or several prompts, so that long prompts delay
    running answers and short prompts little. wait_seconds: the longest wait in line;
    answer_seconds: from leaving it to the last token."""

    max_batch: int = 16
    max_queue: int = 256
    prefill_chunk: int = 512
    wait_seconds: float = math.inf
    answer_seconds: float = math.inf


class Scheduler:
    """Decides whose tokens `runner` computes. trace: called with (request id, StepTrace) per pruned
    step."""

    def __init__(
        self,
        runner: Runner,
        limits: EngineLimits | None = None,
        trace: Callable[[str, StepTrace], None] | None = None,
    ) -> None:
        self.runner = runner
        self.limits = limits or EngineLimits()
        self.blocks = BlockPool(runner.layout.num_blocks)
        self.selection = runner.selection
        self._size = runner.layout.tokens_per_block
        self._trace = trace
        self._lock = threading.Condition()
        self._line = Line(self.limits.max_queue)
        self._running: list[Sequence] = []
        self._ids: set[str] = set()
        self._cancelled: set[str] = set()
        self._errors: list[Exception] = []  # of this step

    # ---- any thread -----------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queues a request. Raises DyCokeError for one that can never run, QueueFullError for a
        full queue; nothing of a refused request stays behind."""
        check_request(
            request,
            vocab=self.runner.vocab,
            positions=self.runner.max_positions,
            num_blocks=self.blocks.num_blocks,
            tokens_per_block=self._size,
        )
        with self._lock:
            if request.request_id in self._ids:
                raise DyCokeError(f"request id {request.request_id!r} is in flight already")
            self._line.check_room()
            self._ids.add(request.request_id)
            self._line.add(request)
            self._lock.notify_all()

    def cancel(self, request_id: str) -> bool:
        """Ends a request at the next step; False if no such request is in flight."""
        with self._lock:
            if request_id not in self._ids:
                return False
            self._cancelled.add(request_id)
            self._lock.notify_all()
            return True

    def in_flight(self) -> int:
        with self._lock:
            return len(self._ids)

    def waiting(self) -> int:
        with self._lock:
            return len(self._line)

    def wait_for_work(self, timeout: float | None = None) -> bool:
        """Blocks until a request is in flight, or the timeout in seconds has passed."""
        with self._lock:
            return self._lock.wait_for(lambda: bool(self._ids), timeout)

    def close(self) -> None:
        """Nothing to give back: no thread, process or device is the engine's own."""

    # ---- the stepping thread --------------------------------------------------------------------

    def run_until_idle(self) -> None:
        while self.step():
            pass

    @torch.no_grad()
    def step(self) -> bool:
        """Some prompt tokens and one decode step; True while requests are in flight.

        Requests that failed have ended with finish="failed"; when the others were served, their
        errors are raised: the error if there is one, an ExceptionGroup of several.
        """
        self._errors = []
        self._drop_cancelled()
        self._drop_late()
        self._admit()
        decoding = [s for s in self._running if s.decoding]
        self._prefill([s for s in self._running if not s.decoding])
        if decoding:
            with DECODE_STEP:
                self._decode(decoding)
        self._running = [s for s in self._running if s.finish is None]
        if len(self._errors) > 1:
            raise ExceptionGroup(f"{len(self._errors)} requests failed", self._errors)
        if self._errors:
            raise self._errors[0]
        return self.in_flight() > 0

    def _drop_cancelled(self) -> None:
        with self._lock:
            cancelled, self._cancelled = self._cancelled, set()
            waiting = self._line.remove(lambda waiting: waiting.request.request_id in cancelled)
        for request in waiting:
            self._deliver(Event(request.request_id, [], "cancelled"), request)
        for sequence in self._running:
            if sequence.request.request_id in cancelled:
                self._end(sequence, "cancelled")
        self._running = [s for s in self._running if s.finish is None]

    def _drop_late(self) -> None:
        """Ends what has waited or run too long; neither is an error of the engine."""
        now, limits = time.monotonic(), self.limits
        with self._lock:
            waiting = self._line.remove(lambda waiting: now - waiting.since > limits.wait_seconds)
        for request in waiting:
            late = TimeLimitError(
                f"waited in line for more than {limits.wait_seconds:g} s; try again later"
            )
            self._deliver(Event(request.request_id, [], "failed", late), request)
        for sequence in self._running:
            if now - sequence.begun > limits.answer_seconds:
                late = TimeLimitError(
                    f"the answer takes more than {limits.answer_seconds:g} s, after "
                    f"{len(sequence.tokens)} of max_tokens {sequence.request.max_tokens}; ask for "
                    "fewer tokens"
                )
                self._end(sequence, "failed", late)
        self._running = [s for s in self._running if s.finish is None]

    def _admit(self) -> None:
        """First come, first served: a request that must wait is not overtaken."""
        while len(self._running) < self.limits.max_batch:
            with self._lock:
                request = self._line.first()
                if request is None:
                    return
                need = blocks_for(len(request.prompt) + request.max_tokens, self._size)
                if need > self.blocks.free:
                    return
                self._line.pop()
            self._running.append(Sequence(request, self.blocks.allocate(need)))

    def _prefill(self, sequences: list[Sequence]) -> None:
        """The next `prefill_chunk` prompt tokens: half of them of who came first, who thus does not
        starve, the others of those with the fewest left, so that short prompts pass long ones."""
        lefts = [len(s.request.prompt) - s.prefilled for s in sequences]
        first = min([*lefts[:1], -(-self.limits.prefill_chunk // 2)])
        budget = self.limits.prefill_chunk - first
        for i in sorted(range(len(sequences)), key=lefts.__getitem__):
            reserved = 0 if i else first
            count = reserved + min(budget, lefts[i] - reserved)
            budget -= count - reserved
            if count:
                with PREFILL, self._alone(sequences[i]):
                    self._prefill_chunk(sequences[i], count)

    def _prefill_chunk(self, sequence: Sequence, count: int) -> None:
        """The next `count` tokens of a prompt; after the last one, the first token."""
        request, past = sequence.request, sequence.prefilled
        upto = past + count
        chunk = Chunk(
            ids=request.prompt[past:upto],
            past=past,
            blocks=sequence.blocks,
            embeddings=request.embeddings,
            last=upto == len(request.prompt),
        )
        logits = self.runner.prefill(chunk)
        sequence.prefilled = upto
        if logits is not None:
            self._take(sequence, logits, 0)

    def _decode(self, sequences: list[Sequence]) -> None:
        """Feeds the newest token of each sequence; an error of the batch ends all of it.

        Its rows are not tried one by one: the step may have changed what pruning remembers, and a
        row fed twice might then answer otherwise.
        """
        try:
            lanes = [
                Lane(s.tokens[-1], s.length, len(s.request.prompt), s.blocks) for s in sequences
            ]
            logits = self.runner.decode(lanes, self._tracer(sequences))
            for row, sequence in enumerate(sequences):
                self._take(sequence, logits, row)
        except Exception as error:
            self._errors.append(error)
            for sequence in sequences:
                if sequence.finish is None:
                    self._end(sequence, "failed", error)

    def _tracer(self, sequences: list[Sequence]) -> Trace | None:
        trace = self._trace
        if trace is None:
            return None
        return lambda row, step: trace(sequences[row].request.request_id, step)

    @contextmanager
    def _alone(self, sequence: Sequence) -> Iterator[None]:
        """What fails inside ends this sequence and no other."""
        try:
            yield
        except Exception as error:
            self._errors.append(error)
            if sequence.finish is None:
                self._end(sequence, "failed", error)

    def _take(self, sequence: Sequence, logits: StepLogits, row: int) -> None:
        with self._alone(sequence):
            with SAMPLE:
                token = logits.pick(row, sequence.request.sampling, sequence.generator)
            self._append(sequence, token)

    def _append(self, sequence: Sequence, token: int) -> None:
        event = sequence.append(token)
        if event is None:
            return
        if event.finish is not None:
            self.blocks.release(sequence.blocks)
        self._deliver(event, sequence.request)

    def _end(self, sequence: Sequence, finish: Finish, error: Exception | None = None) -> None:
        """Ends a sequence before its time; nothing more of it is delivered."""
        sequence.finish = finish
        self.blocks.release(sequence.blocks)
        self._deliver(Event(sequence.request.request_id, [], finish, error), sequence.request)

    def _deliver(self, event: Event, request: Request) -> None:
        """What the callback raises on the last event is kept for the end of the step; what it
        raises earlier is the caller's, who ends the request."""
        if event.finish is None:
            request.on_event(event)
            return
        with self._lock:
            self._ids.discard(event.request_id)
            self._cancelled.discard(event.request_id)
        try:
            request.on_event(event)
        except Exception as error:
            self._errors.append(error)
