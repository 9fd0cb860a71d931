"""What the LLM model in Python publishes beside Triton's own metrics; docs/metrics.md lists it.

Setting a metric is a question to the server, which takes about 0.1 ms: too long for every token. So
the scheduler only counts, and a thread of its own publishes what changed, a hundred times a second.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from ...bundle.manifest import Manifest
from ...core.config import DyCokeConfig
from ...core.decisions import Decision
from ...runtime.llm import LlmEngine
from ...runtime.request import Event
from .metric_families import new_family

if TYPE_CHECKING:
    from .llm_request import LlmRequest

PUBLISH_SECONDS = 0.01
_GAUGES = ("running", "waiting", "used", "blocks", "info")
_OUTCOMES = ("end", "stop", "length", "cancelled", "failed", "refused")
_LABELS = tuple(decision.label for decision in Decision)
GATE_DECISIONS = ("dycoke_gate_decisions_total", "Gate decisions")  # name, description
MOVES = {  # attribute of SelectionCounts, and the plugins' word: name, description
    "reorders": ("dycoke_reorders_total", "Steps of a sequence that moved tokens by importance"),
    "moved": ("dycoke_moved_tokens_total", "Tokens that these moved"),
}
_FIRST_TOKEN_BUCKETS = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]  # seconds


def _selection(config: DyCokeConfig) -> dict[str, str]:
    names = ("p", "l", "gate", "memory", "order", "granularity", "block_reduce")
    return {name: str(getattr(config, name)) for name in names}


class LlmMetrics:
    """Metrics of one engine, all labelled with the model's name."""

    def __init__(self, model: str, engine: LlmEngine, manifest: Manifest) -> None:
        self._engine = engine
        self._labels = {"model": model}
        kind = pb_utils.MetricFamily
        self._first: Any = self._metric(
            "dycoke_time_to_first_token_seconds",
            "From arrival at the LLM step to its first token",
            kind.HISTOGRAM,
            buckets=_FIRST_TOKEN_BUCKETS,
        )
        # What TTM was given, by what it kept.
        self._before = {
            manifest.visual_tokens(frames): frames * manifest.vision.tokens_per_frame
            for frames in range(4, manifest.vision.max_frames + 1, 4)
        }
        # Gauges come last: who sees that the pool is empty sees what emptied it too.
        self._metrics = {
            "steps": self._metric("dycoke_steps_total", "Steps of the scheduler", kind.COUNTER),
            "tokens": self._metric("dycoke_tokens_total", "Tokens generated", kind.COUNTER),
            **self._labelled("dycoke_requests_total", "Requests that ended", "outcome", _OUTCOMES),
            **self._labelled(
                "dycoke_visual_tokens_total", "Visual tokens around TTM", "state", ("in", "kept")
            ),
            **self._labelled(*GATE_DECISIONS, "decision", _LABELS),
            **{move: self._metric(*names, kind.COUNTER) for move, names in MOVES.items()},
            **self._labelled(
                "dycoke_context_tokens_total",
                "Tokens in context of decode steps in layers >= L, and those attended to",
                "state",
                ("all", "attended"),
            ),
            "selecting": self._metric(
                "dycoke_selection_seconds_total", "Time of scoring and selecting", kind.COUNTER
            ),
            "running": self._metric("dycoke_requests_running", "Requests admitted", kind.GAUGE),
            "waiting": self._metric("dycoke_requests_waiting", "Requests in line", kind.GAUGE),
            "used": self._metric("dycoke_kv_blocks_used", "KV blocks in use", kind.GAUGE),
            "blocks": self._metric("dycoke_kv_blocks", "KV blocks of the pool", kind.GAUGE),
            "info": new_family(
                "dycoke_selection_info", "1, labelled with what decode steps select by", kind.GAUGE
            ).Metric(labels={**self._labels, **_selection(manifest.config)}),
        }
        self._lock = threading.Lock()
        self._values: dict[str, float] = defaultdict(float, blocks=engine.blocks.num_blocks, info=1)
        self._published: dict[str, float] = defaultdict(float)
        self._firsts: list[float] = []  # seconds, not published yet
        self._publish()
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_publishing, name="metrics", daemon=True)
        self._thread.start()

    def follow(self, request: LlmRequest) -> Callable[[Event], None]:
        """Counts a request that is about to be queued; returns what counts its events."""
        arrived: float | None = time.perf_counter()
        if request.embeddings is not None:
            kept = len(request.embeddings)
            with self._lock:
                self._values["kept"] += kept
                # A client of this step alone may send a table that no TTM made.
                self._values["in"] += self._before.get(kept, kept)

        def count(event: Event) -> None:
            nonlocal arrived
            with self._lock:
                if event.tokens and arrived is not None:
                    self._firsts.append(time.perf_counter() - arrived)
                    arrived = None
                self._values["tokens"] += len(event.tokens)
                if event.finish is not None:
                    self._values[event.finish] += 1

        return count

    def refused(self) -> None:
        """A request that was answered with an error at once."""
        with self._lock:
            self._values["refused"] += 1
        self._changed.set()

    def after_step(self) -> None:
        with self._lock:
            self._values["steps"] += 1
            self._values["waiting"] = self._engine.waiting()
            self._values["running"] = self._engine.in_flight() - self._values["waiting"]
            selection = self._engine.selection
            for decision in Decision:
                self._values[decision.label] = selection.decisions[decision]
            for move in MOVES:
                self._values[move] = getattr(selection, move)
            self._values["all"] = selection.context
            self._values["attended"] = selection.attended
            self._values["selecting"] = selection.seconds
            self._values["used"] = self._engine.blocks.num_blocks - self._engine.blocks.free
        self._changed.set()

    def close(self) -> None:
        """Publishes the rest; of what there is now, nothing is left."""
        self._stopping.set()
        self._changed.set()
        self._thread.join()
        self._values.update(dict.fromkeys(_GAUGES, 0.0))
        self._publish()

    def _keep_publishing(self) -> None:
        while not self._stopping.wait(PUBLISH_SECONDS):
            self._changed.wait()
            self._changed.clear()
            self._publish()

    def _publish(self) -> None:
        with self._lock:
            values = self._values.copy()
            firsts, self._firsts = self._firsts, []
        for seconds in firsts:
            self._first.observe(seconds)
        for name, metric in self._metrics.items():
            if change := values[name] - self._published[name]:
                metric.increment(change)
        self._published = values

    def _metric(self, name: str, description: str, kind: object, **options: Any) -> Any:
        return new_family(name, description, kind).Metric(labels=self._labels, **options)

    def _labelled(
        self, name: str, description: str, label: str, values: Iterable[str]
    ) -> dict[str, Any]:
        """A counter for each value of a label, by that value."""
        family = new_family(name, description, pb_utils.MetricFamily.COUNTER)
        return {value: family.Metric(labels={**self._labels, label: value}) for value in values}
