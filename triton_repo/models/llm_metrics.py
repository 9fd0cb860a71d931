"""What the native LLM model publishes beside Triton's own metrics."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils

from ...runtime.native.engine import NativeEngine
from ...runtime.native.request import Event


class LlmMetrics:
    """Gauges and counters of one engine, all labelled with the model's name."""

    def __init__(self, model: str, engine: NativeEngine) -> None:
        self._engine = engine
        self._families: list[pb_utils.MetricFamily] = []  # a metric dies with its family
        self._labels = {"model": model}
        kind = pb_utils.MetricFamily
        self._used = self._metric("dycoke_kv_blocks_used", "KV blocks in use", kind.GAUGE)
        total = self._metric("dycoke_kv_blocks", "KV blocks of the pool", kind.GAUGE)
        total.set(engine.blocks.num_blocks)
        self._waiting = self._metric("dycoke_requests_waiting", "Requests in line", kind.GAUGE)
        self._steps = self._metric("dycoke_steps_total", "Steps of the scheduler", kind.COUNTER)
        self._tokens = self._metric("dycoke_tokens_total", "Tokens generated", kind.COUNTER)
        outcomes = self._family("dycoke_requests_total", "Requests that ended", kind.COUNTER)
        self._outcomes = {
            outcome: outcomes.Metric(labels={**self._labels, "outcome": outcome})
            for outcome in ("end", "stop", "length", "cancelled", "failed")
        }

    def count(self, event: Event) -> None:
        if event.tokens:
            self._tokens.increment(len(event.tokens))
        if event.finish is not None:
            self._outcomes[event.finish].increment(1)

    def after_step(self) -> None:
        self._steps.increment(1)
        self._used.set(self._engine.blocks.num_blocks - self._engine.blocks.free)
        self._waiting.set(self._engine.waiting())

    def _metric(self, name: str, description: str, kind: object) -> pb_utils.Metric:
        return self._family(name, description, kind).Metric(labels=self._labels)

    def _family(self, name: str, description: str, kind: object) -> pb_utils.MetricFamily:
        family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
        self._families.append(family)
        return family
