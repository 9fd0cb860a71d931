"""TensorRT-LLM's executor behind the methods of the native engine: the same requests and events.

The executor batches, schedules and samples in threads of its own. One thread calls `step`, which
waits for its responses; any thread may `submit` and `cancel`.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from ...bundle.manifest import Manifest
from ...bundle.record import EngineRecord
from ...core.decisions import Decision
from ...core.errors import DyCokeError, QueueFullError, TimeLimitError
from ..limits import RequestLimits
from ..request import Event, Finish, Request, check_request
from ..selection import SelectionCounts
from ..sequence import Sequence
from .counters import MOVES, counters_path, read_counters
from .executor_config import check_limits, executor_config, executor_request
from .plugin import COUNTERS

_PATIENCE = timedelta(milliseconds=20)  # how long a step waits for responses


@dataclass
class PoolUse:
    """The executor's KV pool in blocks, as of its last iteration."""

    num_blocks: int
    free: int


@dataclass
class _Flight:
    """A request that the executor holds; last: its last event, kept until nothing is held; error:
    why it is being ended before its time."""

    sequence: Sequence
    last: Event | None = None
    error: Exception | None = None


class ExecutorEngine:
    """Runs requests on the engines in `directory`. bindings: tensorrt_llm.bindings.executor.

    Under mpirun only the first rank takes requests (`leads`); `close` of the others returns when
    the first has closed.
    """

    def __init__(
        self,
        bindings: Any,
        directory: Path,
        record: EngineRecord,
        manifest: Manifest,
        limits: RequestLimits | None = None,
    ) -> None:
        self._bindings = bindings
        self._limits = limits or RequestLimits()
        self._record = record
        self._vocab = manifest.visual_token_base
        self._dtype = manifest.llm.dtype.torch
        self._rows = int(record.options["max_table_rows"]) // record.max_batch
        blocks = record.kv_tokens // record.tokens_per_block
        self.blocks = PoolUse(blocks, blocks)
        self.selection = SelectionCounts()  # decisions alone, and where the plugins publish them
        self._counters = counters_path(os.environ.get(COUNTERS, ""), os.getpid())
        self._executor = bindings.Executor(
            directory, bindings.ModelType.DECODER_ONLY, executor_config(bindings, record)
        )
        reasons = bindings.FinishReason
        self._finishes: dict[Any, Finish] = {
            reasons.END_ID: "end",
            reasons.STOP_WORDS: "stop",
            reasons.LENGTH: "length",
            reasons.CANCELLED: "cancelled",
        }
        self._lock = threading.Condition()
        self._running: dict[int, _Flight] = {}  # by the executor's number
        self._numbers: dict[str, int] = {}
        self._waiting = 0
        self._failure: Exception | None = None
        self._errors: list[Exception] = []  # of this step
        self._closed = False

    @property
    def leads(self) -> bool:
        return bool(self._executor.can_enqueue_requests())

    def close(self) -> None:
        """Ends the executor and what it holds on the GPU; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._executor.shutdown()

    # ---- any thread -----------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queues a request. Raises DyCokeError for one that can never run, QueueFullError for a
        full queue, RuntimeError where the executor has failed or refuses it."""
        check_request(
            request,
            vocab=self._vocab,
            positions=int(self._record.options["max_seq_len"]),
            num_blocks=self.blocks.num_blocks,
            tokens_per_block=self._record.tokens_per_block,
        )
        check_limits(request, self._record, self._rows)
        theirs = executor_request(self._bindings, request, self._dtype)
        flight = _Flight(Sequence(request))
        with self._lock:
            if self._failure is not None:
                raise RuntimeError(f"TensorRT-LLM's executor failed: {self._failure}")
            if request.request_id in self._numbers:
                raise DyCokeError(f"request id {request.request_id!r} is in flight already")
            waiting = len(self._running) - self._record.max_batch
            if waiting >= self._limits.max_queue:
                raise QueueFullError(
                    f"{waiting} requests wait already (limit {self._limits.max_queue}); try again "
                    "later"
                )
            # Its first response may come before this returns: `step` needs the lock to take it.
            number = self._executor.enqueue_request(theirs)
            self._running[number] = flight
            self._numbers[request.request_id] = number
            self._lock.notify_all()

    def cancel(self, request_id: str) -> bool:
        """Ends a request soon; False if no such request is in flight."""
        with self._lock:
            number = self._numbers.get(request_id)
            if number is None:
                return False
            self._executor.cancel_request(number)
            return True

    def in_flight(self) -> int:
        with self._lock:
            return len(self._running)

    def waiting(self) -> int:
        with self._lock:
            return self._waiting

    def wait_for_work(self, timeout: float | None = None) -> bool:
        """Blocks until a request is in flight, or the timeout in seconds has passed."""
        with self._lock:
            return self._lock.wait_for(lambda: bool(self._running), timeout)

    # ---- the stepping thread --------------------------------------------------------------------

    def run_until_idle(self) -> None:
        while self.step():
            pass

    def step(self) -> bool:
        """Delivers the responses that are ready; True while requests are in flight.

        An error of one request ends it with finish="failed" and is raised when the others were
        served; an error of the executor ends all of them, and nothing is accepted afterwards.
        """
        self._errors = []
        try:
            responses = self._executor.await_responses(timeout=_PATIENCE)
            statistics = self._executor.get_latest_iteration_stats()
        except Exception as error:
            with self._lock:
                self._failure = error
                lost = list(self._running)
            for number in lost:
                self._end(number, "failed", error)
            raise
        self._stop_late()
        for response in responses:
            self._take(response)
        self._observe(statistics)
        if len(self._errors) > 1:
            raise ExceptionGroup(f"{len(self._errors)} requests failed", self._errors)
        if self._errors:
            raise self._errors[0]
        return self.in_flight() > 0

    def _stop_late(self) -> None:
        """Begins to end what runs too long; its last response still has to come."""
        most, now = self._limits.max_answer_seconds, time.monotonic()
        with self._lock:
            for number, flight in self._running.items():
                if flight.error is None and now - flight.sequence.begun > most:
                    flight.error = TimeLimitError(f"waiting and answer take more than {most:g} s")
                    self._executor.cancel_request(number)

    def _take(self, response: Any) -> None:
        """Delivers one response."""
        number = response.request_id
        with self._lock:
            flight = self._running.get(number)
        if flight is None:
            return
        if response.has_error():
            error = RuntimeError(str(response.error_msg))
            self._errors.append(error)
            self._end(number, "failed", error)
            return
        result, sequence = response.result, flight.sequence
        try:
            for token in result.output_token_ids[0] if flight.error is None else ():
                event = sequence.append(token) if sequence.finish is None else None
                if event is not None and event.finish is not None:
                    flight.last = event
                elif event is not None:
                    sequence.request.on_event(event)
        except Exception as raised:  # by the callback: nobody takes this answer any more
            self._errors.append(raised)
            flight.error = raised
            self._executor.cancel_request(number)
        if result.is_final:
            self._end(number, self._finishes.get(result.finish_reasons[0], "failed"))

    def _end(self, number: int, finish: Finish, error: Exception | None = None) -> None:
        """Delivers the last event of a request, which the executor has done with."""
        with self._lock:
            flight = self._running.pop(number)
            del self._numbers[flight.sequence.request.request_id]
        sequence, error = flight.sequence, flight.error or error
        # Tokens that might have begun a stop word did not, if the answer is complete.
        upto = len(sequence.tokens) if finish in ("end", "length") else sequence.delivered
        last = flight.last or sequence.end(finish, upto)
        if error is not None:
            last = Event(sequence.request.request_id, [], "failed", error)
        try:
            sequence.request.on_event(last)
        except Exception as raised:
            self._errors.append(raised)

    def _observe(self, statistics: list[Any]) -> None:
        with self._lock:
            if statistics:
                self._waiting = statistics[-1].num_queued_requests
                pool = statistics[-1].kv_cache_stats
                if pool is not None:
                    self.blocks = PoolUse(pool.max_num_blocks, pool.free_num_blocks)
            if self._counters.is_file():
                counted = read_counters(self._counters)
                self.selection.decisions[:] = [counted[decision.row] for decision in Decision]
                self.selection.reorders, self.selection.moved = (counted[name] for name in MOVES)
            if not self._running:  # no iteration says so
                self._waiting, self.blocks.free = 0, self.blocks.num_blocks
