"""What the native LLM model publishes beside Triton's own metrics.

Setting a metric is a question to the server, which takes about 0.1 ms: too long for every token. So
the scheduler only counts, and a thread of its own publishes what changed, a hundred times a second.
"""

from __future__ import annotations

import threading
from collections import Counter

import triton_python_backend_utils as pb_utils

from ...runtime.native.engine import NativeEngine
from ...runtime.native.request import Event

PUBLISH_SECONDS = 0.01
_OUTCOMES = ("end", "stop", "length", "cancelled", "failed")


class LlmMetrics:
    """Gauges and counters of one engine, all labelled with the model's name."""

    def __init__(self, model: str, engine: NativeEngine) -> None:
        self._engine = engine
        self._families: list[pb_utils.MetricFamily] = []  # a metric dies with its family
        self._labels = {"model": model}
        kind = pb_utils.MetricFamily
        total = self._metric("dycoke_kv_blocks", "KV blocks of the pool", kind.GAUGE)
        total.set(engine.blocks.num_blocks)
        outcomes = self._family("dycoke_requests_total", "Requests that ended", kind.COUNTER)
        # Gauges come last: who sees that the pool is empty sees what emptied it too.
        self._metrics = {
            "steps": self._metric("dycoke_steps_total", "Steps of the scheduler", kind.COUNTER),
            "tokens": self._metric("dycoke_tokens_total", "Tokens generated", kind.COUNTER),
            **{
                outcome: outcomes.Metric(labels={**self._labels, "outcome": outcome})
                for outcome in _OUTCOMES
            },
            "waiting": self._metric("dycoke_requests_waiting", "Requests in line", kind.GAUGE),
            "used": self._metric("dycoke_kv_blocks_used", "KV blocks in use", kind.GAUGE),
        }
        self._lock = threading.Lock()
        self._values: Counter[str] = Counter()
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._publish, name="metrics", daemon=True)
        self._thread.start()

    def count(self, event: Event) -> None:
        with self._lock:
            self._values["tokens"] += len(event.tokens)
            if event.finish is not None:
                self._values[event.finish] += 1

    def after_step(self) -> None:
        with self._lock:
            self._values["steps"] += 1
            self._values["waiting"] = self._engine.waiting()
            self._values["used"] = self._engine.blocks.num_blocks - self._engine.blocks.free
        self._changed.set()

    def close(self) -> None:
        """Ends publishing; the server that would show the rest ends too."""
        self._stopping.set()
        self._changed.set()
        self._thread.join()

    def _publish(self) -> None:
        published: Counter[str] = Counter()
        while not self._stopping.wait(PUBLISH_SECONDS):
            self._changed.wait()
            if self._stopping.is_set():
                return
            self._changed.clear()
            with self._lock:
                values = self._values.copy()
            for name, metric in self._metrics.items():
                # Gauges are changed by differences too, so that all are alike.
                if change := values[name] - published[name]:
                    metric.increment(change)
            published = values

    def _metric(self, name: str, description: str, kind: object) -> pb_utils.Metric:
        return self._family(name, description, kind).Metric(labels=self._labels)

    def _family(self, name: str, description: str, kind: object) -> pb_utils.MetricFamily:
        family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
        self._families.append(family)
        return family
