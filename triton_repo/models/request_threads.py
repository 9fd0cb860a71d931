"""A thread for each request of a model that answers once, so that none keeps another waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...core.errors import DyCokeError, QueueFullError
from .requests import error_response
from .sender import Sender


class CancelledError(Exception):
    """The client does not wait any more."""


class RequestThreads:
    """most: requests that are held at once; more are refused. answer: makes the response."""

    def __init__(self, model: str, most: int, answer: Callable[[Any, Sender], Any]) -> None:
        self._model, self._most, self._answer = model, most, answer
        self._threads = ThreadPoolExecutor(most, "request")
        self._lock = threading.Lock()
        self._held = 0

    def execute(self, requests: list[Any]) -> list[None]:
        """What a model's `execute` returns; every response is sent later."""
        for request in requests:
            sender = Sender(request)
            with self._lock:
                full = self._held >= self._most
                self._held += not full
            if full:
                error = QueueFullError(
                    f"{self._most} requests are in {self._model} already (a full batch and the "
                    "server's --max-queue); try again later"
                )
                sender.send(error_response(error), final=True)
            else:
                self._threads.submit(self._run, request, sender)
        return [None] * len(requests)

    def held(self) -> int:
        return self._held

    def close(self) -> None:
        """Returns once all are answered."""
        self._threads.shutdown()

    def _run(self, request: Any, sender: Sender) -> None:
        try:
            response = self._answer(request, sender)
        except CancelledError:  # a response has to come, whoever takes it
            response = error_response(DyCokeError("the request was cancelled"))
        except Exception as error:
            response = error_response(error)
        with self._lock:
            self._held -= 1
        sender.send(response, final=True)
