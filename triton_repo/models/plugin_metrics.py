"""Selections of engines that TensorRT-LLM's own backend runs, under the native model's names.

That backend's metrics know nothing of DyCoke, and its process has no Python. The plugins count in
files (`--counters`); a model in Python reads them, once a second as they are written.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import triton_python_backend_utils as pb_utils

from ...core.decisions import Decision
from ...runtime.protocol import LLM
from ...runtime.trtllm.counters import CountersSince
from ...runtime.trtllm.plugin import COUNTERS
from .llm_metrics import GATE_DECISIONS, MOVES
from .metric_families import new_family

_SECONDS = 1.0


class PluginMetrics:
    """Publishes until `close`; nothing where the server has no DYCOKE_COUNTERS_FILE."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._metrics: dict[str, Any] = {}
        if name := os.environ.get(COUNTERS):
            family = new_family(*GATE_DECISIONS, kind=pb_utils.MetricFamily.COUNTER)
            self._metrics = {
                decision.row: family.Metric(labels={"model": LLM, "decision": decision.label})
                for decision in Decision
            }
            for move, names in MOVES.items():
                family = new_family(*names, kind=pb_utils.MetricFamily.COUNTER)
                self._metrics[move] = family.Metric(labels={"model": LLM})
            self._counts = CountersSince(name)
            self._thread = threading.Thread(target=self._publish, name="counters", daemon=True)
            self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _publish(self) -> None:
        published = dict.fromkeys(self._metrics, 0)
        while not self._stopping.wait(_SECONDS):
            for name, count in self._counts().items():
                # Never less than before: files may vanish.
                if count > published[name]:
                    self._metrics[name].increment(count - published[name])
                    published[name] = count
