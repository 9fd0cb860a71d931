"""Continuous batching: a bounded queue, admission by KV blocks, chunked prefill, one decode batch.

One thread calls `step`; any thread may `submit` and `cancel`. A request is admitted when the pool
can hold its prompt and all tokens it may generate, and keeps these blocks to its end: pruned
generations cannot be recomputed, so nothing is ever preempted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.config import DyCokeConfig
from ...core.errors import DyCokeError, QueueFullError
from ...core.pool import encode_table
from ...core.state import ReselectionState, write_context
from ..stages import DECODE_STEP, PREFILL, QUEUE, SAMPLE
from .blocks import BlockPool, blocks_for
from .model import Qwen2
from .pruning import Pruner, PruningTables, SelectionCounts, StepTrace
from .request import Event, Request, Sequence, check_request
from .sampling import sample
from .steps import Lane, StepDecoder


@dataclass(frozen=True)
class EngineLimits:
    """max_batch: sequences that hold blocks at once; max_queue: requests that wait beside them;
    prefill_chunk: prompt tokens per step, of one or several prompts, so that long prompts delay
    running answers little."""

    max_batch: int = 16
    max_queue: int = 256
    prefill_chunk: int = 2048


class NativeEngine:
    """Runs requests on one model. trace: called with (request id, StepTrace) per pruned step."""

    def __init__(
        self,
        model: Qwen2,
        config: DyCokeConfig,
        limits: EngineLimits | None = None,
        trace: Callable[[str, StepTrace], None] | None = None,
    ) -> None:
        config.check_layers(model.config.layers)
        self.model = model
        self.config = config
        self.limits = limits or EngineLimits()
        self.blocks = BlockPool(model.layout.num_blocks)
        self._size = model.layout.tokens_per_block
        self._trace = trace
        self._state: ReselectionState | None = None
        if config.p > 0:
            self._state = ReselectionState.allocate(
                model.layout.num_blocks, self._size, model.device, config.granularity
            )
            self._tables = PruningTables(config, model.layout.num_blocks, self._size)
        self._decoder = model.step_decoder(config, self._state, self.limits.max_batch)
        self.selection = SelectionCounts() if self._decoder is None else self._decoder.selection
        self._lock = threading.Condition()
        self._queue: deque[Request] = deque()
        self._waits: dict[str, Any] = {}  # open ranges of `queue`, by request id
        self._running: list[Sequence] = []
        self._ids: set[str] = set()
        self._cancelled: set[str] = set()

    # ---- any thread -----------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queues a request. Raises DyCokeError for one that can never run, QueueFullError for a
        full queue; nothing of a refused request stays behind."""
        check_request(
            request,
            vocab=self.model.config.vocab,
            positions=self.model.config.max_positions,
            num_blocks=self.blocks.num_blocks,
            tokens_per_block=self._size,
        )
        with self._lock:
            if request.request_id in self._ids:
                raise DyCokeError(f"request id {request.request_id!r} is in flight already")
            if len(self._queue) >= self.limits.max_queue:
                raise QueueFullError(
                    f"{len(self._queue)} requests wait already (limit {self.limits.max_queue}); "
                    "try again later"
                )
            self._ids.add(request.request_id)
            self._queue.append(request)
            self._waits[request.request_id] = QUEUE.begin()
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
            return len(self._queue)

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

        An exception of the model ends every running request with finish="failed" and is raised.
        """
        self._drop_cancelled()
        self._admit()
        try:
            decoding = [s for s in self._running if s.decoding]
            self._prefill([s for s in self._running if not s.decoding])
            if decoding:
                with DECODE_STEP:
                    self._decode(decoding)
        except Exception:
            for sequence in self._running:
                if sequence.finish is None:
                    sequence.finish = "failed"
                    self._deliver(Event(sequence.request.request_id, [], "failed"), sequence)
            self._running = []
            raise
        self._running = [s for s in self._running if s.finish is None]
        return self.in_flight() > 0

    def _drop_cancelled(self) -> None:
        with self._lock:
            cancelled, self._cancelled = self._cancelled, set()
            dropped = [r for r in self._queue if r.request_id in cancelled]
            self._queue = deque(r for r in self._queue if r.request_id not in cancelled)
        for request in dropped:
            QUEUE.end(self._waits.pop(request.request_id))
            self._deliver(Event(request.request_id, [], "cancelled"), request=request)
        for sequence in self._running:
            if sequence.request.request_id in cancelled:
                sequence.finish = "cancelled"
                self._deliver(Event(sequence.request.request_id, [], "cancelled"), sequence)
        self._running = [s for s in self._running if s.finish is None]

    def _admit(self) -> None:
        """First come, first served: a request that must wait is not overtaken."""
        while len(self._running) < self.limits.max_batch:
            with self._lock:
                if not self._queue:
                    return
                request = self._queue[0]
                need = blocks_for(len(request.prompt) + request.max_tokens, self._size)
                if need > self.blocks.free:
                    return
                self._queue.popleft()
            QUEUE.end(self._waits.pop(request.request_id))
            self._running.append(
                Sequence(request, self.blocks.allocate(need), request.sampling.generator())
            )

    def _prefill(self, sequences: list[Sequence]) -> None:
        """The next `prefill_chunk` prompt tokens, first come, first served."""
        budget = self.limits.prefill_chunk
        for sequence in sequences:
            count = min(budget, len(sequence.request.prompt) - sequence.prefilled)
            if count == 0:
                return
            with PREFILL:
                self._prefill_chunk(sequence, count)
            budget -= count

    def _prefill_chunk(self, sequence: Sequence, count: int) -> None:
        """The next `count` tokens of a prompt; after the last one, the first token."""
        request, past = sequence.request, sequence.prefilled
        upto = past + count
        ids = torch.tensor(request.prompt[past:upto], device=self.model.device)
        blocks = torch.tensor([sequence.blocks], device=self.model.device)
        if self._state is not None:
            visual = torch.zeros(
                1, blocks.shape[1] * self._size, dtype=torch.bool, device=self.model.device
            )
            visual[0, past:upto] = ids >= self.model.config.vocab
            chunk = torch.tensor([[past], [upto]], device=self.model.device)
            write_context(self._state, blocks, chunk[0], chunk[1], visual)
        table = encode_table(blocks, self.model.config.layers)[0].long()
        hidden = self.model.prefill(self.model.embed(ids, request.embeddings), table, past)
        sequence.prefilled = upto
        if upto == len(request.prompt):
            self._take(sequence, self.model.logits(hidden)[0])

    def _decode(self, sequences: list[Sequence]) -> None:
        """Feeds the newest token of each sequence."""
        if self._decoder is not None:
            self._decode_step(self._decoder, sequences)
            return
        device = self.model.device
        width = max(blocks_for(s.length, self._size) for s in sequences)
        padded = [s.blocks[:width] + [0] * (width - len(s.blocks)) for s in sequences]
        blocks = torch.tensor(padded, device=device)
        lengths = torch.tensor([s.length for s in sequences], device=device)
        fed = torch.tensor([s.tokens[-1] for s in sequences], device=device)
        pruner = None
        if self._state is not None:
            prompts = torch.tensor([len(s.request.prompt) for s in sequences], device=device)
            pruner = Pruner(
                self.config,
                self._state,
                self._tables,
                blocks,
                prompts,
                self.model.config.layers,
                self._tracer(sequences),
                self.selection,
            )
        table = encode_table(blocks, self.model.config.layers).long()
        hidden = self.model.decode(self.model.embed(fed), table, lengths, pruner)
        for sequence, logits in zip(sequences, self.model.logits(hidden), strict=True):
            self._take(sequence, logits)

    def _decode_step(self, decoder: StepDecoder, sequences: list[Sequence]) -> None:
        """The same through a device's own decoder: greedy tokens are picked where they arise."""
        step = decoder.step(
            [Lane(s.tokens[-1], s.length, len(s.request.prompt), s.blocks) for s in sequences],
            self._tracer(sequences),
        )
        for row, sequence in enumerate(sequences):
            sampling = sequence.request.sampling
            if sampling.greedy:
                self._append(sequence, step.best[row])
            else:
                self._take(sequence, step.logits[row].cpu())

    def _tracer(self, sequences: list[Sequence]) -> Callable[[int, StepTrace], None] | None:
        trace = self._trace
        if trace is None:
            return None
        return lambda row, step: trace(sequences[row].request.request_id, step)

    def _take(self, sequence: Sequence, logits: Tensor) -> None:
        with SAMPLE:
            token = sample(logits, sequence.request.sampling, sequence.generator)
        self._append(sequence, token)

    def _append(self, sequence: Sequence, token: int) -> None:
        event = sequence.append(token)
        if event is not None:
            self._deliver(event, sequence)

    def _deliver(
        self, event: Event, sequence: Sequence | None = None, request: Request | None = None
    ) -> None:
        """Frees what a finished request holds before its last event says so."""
        if event.finish is not None:
            if sequence is not None:
                self.blocks.release(sequence.blocks)
            with self._lock:
                self._ids.discard(event.request_id)
                self._cancelled.discard(event.request_id)
        owner = sequence.request if sequence is not None else request
        assert owner is not None
        owner.on_event(event)
