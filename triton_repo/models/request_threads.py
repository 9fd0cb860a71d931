"""A thread for each request of a model, so that none keeps another waiting.

Triton's own times of such a model end where `execute` returns, so that a histogram says how long
requests were in it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import triton_python_backend_utils as pb_utils

from ...core.errors import QueueFullError
from .metric_families import new_family
from .requests import CancelledError, error_response, triton_error
from .sender import Sender

_BUCKETS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]  # seconds


class RequestThreads:
    """most: requests that are held at once; more are refused. answer: makes the last response, and
    raises CancelledError where nobody waits for it. decoupled: of the model, whose requests may end
    without a response. seconds: the name of the histogram."""

    def __init__(
        self,
        model: str,
        most: int,
        answer: Callable[[Any, Sender], Any],
        *,
        seconds: str,
        decoupled: bool = False,
    ) -> None:
        self._model, self._most, self._answer = model, most, answer
        self._decoupled = decoupled
        family = new_family(
            seconds,
            f"From a request's arrival at {model} to its last response",
            pb_utils.MetricFamily.HISTOGRAM,
        )
        # A metric has one place in shared memory for what it is told, and no lock: two threads at
        # once end the server, seen on 2.51 (python_backend, metric.cc, SendObserveRequest; in 2026
        # as well).
        self._publishing = threading.Lock()
        self._seconds = family.Metric(labels={"model": model}, buckets=_BUCKETS)
        self._threads = ThreadPoolExecutor(most, "request")
        self._lock = threading.Lock()
        self._held: dict[Sender, str] = {}  # and their requests' ids

    def execute(self, requests: list[Any]) -> list[None]:
        """What a model's `execute` returns; every response is sent later."""
        for request in requests:
            sender = Sender(request)
            with self._lock:
                full = len(self._held) >= self._most
                if not full:
                    self._held[sender] = request.request_id()
            if full:
                error = QueueFullError(
                    f"{self._most} requests are in {self._model} already (a full batch and the "
                    "server's --max-queue); try again later"
                )
                sender.send(error_response(error), final=True)
            else:
                self._threads.submit(self._run, request, sender, time.perf_counter())
        return [None] * len(requests)

    def held(self) -> int:
        return len(self._held)

    def stop(self, request_id: str) -> None:
        """Requests of that id count as cancelled by their client. Does nothing where none is held.

        The server tells a model that another calls nothing of its caller's end.
        """
        with self._lock:
            senders = [sender for sender, held in self._held.items() if held == request_id]
        for sender in senders:
            sender.give_up()

    def close(self) -> None:
        """Returns once all are answered."""
        self._threads.shutdown()

    def _run(self, request: Any, sender: Sender, arrived: float) -> None:
        try:
            response = self._answer(request, sender)
        except CancelledError as error:
            response = None if self._decoupled else error_response(error)
        except Exception as error:
            response = error_response(error)
        with self._lock:  # before the client can ask again
            del self._held[sender]
        try:
            sender.send(response, final=True)
        except Exception as error:
            triton_error(error)  # logs it
        with self._publishing:
            self._seconds.observe(time.perf_counter() - arrived)
