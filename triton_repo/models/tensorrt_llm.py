"""Model `tensorrt_llm` in Python: the tensors of TensorRT-LLM's backend around an engine of ours.

The engine is the native one, or TensorRT-LLM's executor where its C++ backend is not installed.
`execute` queues and returns at once. One thread steps the engine, so that requests in flight share
each decode step; another sends, so that a step never waits for the server. Tokens that arrive while
an earlier response of the same stream is still being sent leave together in the next one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ...bundle.files import open_bundle
from ...core.errors import DyCokeError
from ...runtime.limits import RequestLimits
from ...runtime.llm import load_llm
from ...runtime.request import Event, Request
from .llm_metrics import LlmMetrics
from .llm_request import LlmRequest, read_llm_request
from .requests import (
    check_parameters,
    error_response,
    failure,
    parameters,
    scalar,
    tensors,
    triton_error,
    wants_errors_as_output,
)
from .sender import Sender

_IDLE_SECONDS = 0.1  # how often an idle scheduler looks whether it should end


class Stream:
    """One request's way back: what is ready to send, and its sender."""

    def __init__(self, request: LlmRequest, sender: Sender) -> None:
        self.request = request
        self.sender = sender
        self.started = False  # has tokens
        self.ended = False
        self._lock = threading.Lock()
        self._tokens: list[int] = []
        self._finish: str | None = None
        self._error: Exception | None = None
        self._queued = False
        self._first = True
        self._interruption: Exception | None = None

    def interrupt(self, error: Exception) -> None:
        """What a cancelled stream is told that its client did not cancel."""
        self._interruption = error

    def add(self, event: Event) -> bool:
        """Takes an event; True if the stream has to be queued for sending."""
        with self._lock:
            self.started = True
            self._tokens += event.tokens
            self._finish, self._error = event.finish, event.error
            self.ended = event.finish is not None
            wanted = self.ended or self.request.streaming
            queue, self._queued = wanted and not self._queued, self._queued or wanted
            return queue

    def send(self) -> None:
        """Sends everything that is ready as one response."""
        with self._lock:
            tokens, self._tokens = self._tokens, []
            finish, self._queued = self._finish, False
        first, self._first = self._first, False
        if finish == "failed":
            told = failure(_told(self._error), as_output=self.request.errors_as_output)
            self.sender.send(told, final=True)
            return
        if finish == "cancelled" and self._interruption is not None:
            told = error_response(self._interruption, as_output=self.request.errors_as_output)
            self.sender.send(told, final=True)
            return
        ids = [*self.request.prompt, *tokens] if self.request.echo else tokens
        values: dict[str, np.ndarray[Any, Any]] = {
            "output_ids": np.array([[ids]], np.int32),
            "sequence_length": np.array([[len(ids)]], np.int32),
            "is_first": np.array([[first]]),
            "is_final": np.array([[finish is not None]]),
        }
        if self.request.count_input:
            values["num_input_tokens"] = np.array([[len(self.request.prompt)]], np.int32)
        if self.request.count_output:
            values["num_output_tokens"] = np.array([[len(tokens)]], np.int32)
        response = pb_utils.InferenceResponse(tensors(values))
        self.sender.send(response, final=finish is not None)


def _told(error: Exception | None) -> Any:
    """What a client is told; an error that is no user's has been logged with its trace."""
    if isinstance(error, DyCokeError):
        return triton_error(error)
    text = f"the model failed on this request ({type(error).__name__}); the server's log says why"
    return pb_utils.TritonError(text, pb_utils.TritonError.INTERNAL)


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        given = parameters(args)
        bundle = Path(given["bundle"])
        self._engine = load_llm(bundle, given["build"], RequestLimits.from_parameters(given))
        self._metrics = LlmMetrics(args["model_name"], self._engine, open_bundle(bundle))
        self._lock = threading.Lock()
        self._ending: Exception | None = None
        self._streams: deque[Stream] = deque()  # in flight, in the order to look at
        self._outbox: SimpleQueue[Stream | None] = SimpleQueue()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True)
            for work in (self._schedule, self._send)
        ]
        for thread in self._threads:
            thread.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = Sender(request)
            try:
                self._accept(request, sender)
            except Exception as error:
                self._metrics.refused()
                as_output = wants_errors_as_output(request)
                sender.send(error_response(error, as_output=as_output), final=True)

    def finalize(self) -> None:
        self._stopping.set()
        self._threads[0].join()
        self._outbox.put(None)
        self._threads[1].join()
        self._metrics.close()
        self._engine.close()

    def in_flight(self) -> int:
        return self._engine.in_flight()

    def end_streams(self, error: Exception) -> None:
        """Every stream ends with `error`, as does every request that comes now (alive.py)."""
        with self._lock:
            self._ending = error
            streams = [stream for stream in self._streams if not stream.ended]
        for stream in streams:
            stream.interrupt(error)
            self._engine.cancel(stream.request.request_id)

    def _accept(self, request: Any, sender: Sender) -> None:
        check_parameters(request)
        if scalar(request, "stop"):
            # Not an error where nothing is in flight: the request may just have ended.
            self._engine.cancel(request.request_id())
            sender.send(final=True)
            return
        if self._ending is not None:
            raise self._ending
        wanted = read_llm_request(request)
        stream = Stream(wanted, sender)
        count = self._metrics.follow(wanted)

        def on_event(event: Event) -> None:
            if stream.add(event):
                self._outbox.put(stream)
            count(event)

        self._engine.submit(
            Request(
                wanted.request_id,
                wanted.prompt,
                wanted.max_tokens,
                on_event,
                wanted.embeddings,
                wanted.sampling,
                wanted.end_ids,
                wanted.stop,
            )
        )
        with self._lock:
            self._streams.append(stream)

    def _schedule(self) -> None:
        while not self._stopping.is_set():
            if self._engine.wait_for_work(_IDLE_SECONDS):
                self._drop_cancelled()
                try:
                    self._engine.step()
                except Exception as error:
                    triton_error(error)  # logs it; who it concerns was told
                self._metrics.after_step()

    def _drop_cancelled(self) -> None:
        """Ends requests whose client cancelled.

        Asking costs about as much as sending a response, so a step asks for half of the streams
        that run and for one that waits.
        """
        with self._lock:
            streams = [stream for stream in self._streams if not stream.ended]
            running = [stream for stream in streams if stream.started]
            asked = running[: (len(running) + 1) // 2]
            asked += [stream for stream in streams if not stream.started][:1]
            self._streams = deque([s for s in streams if s not in asked] + asked)
        for stream in asked:
            if stream.sender.is_cancelled():
                self._engine.cancel(stream.request.request_id)

    def _send(self) -> None:
        while (stream := self._outbox.get()) is not None:
            try:
                stream.send()
            except Exception as error:
                triton_error(error)  # logs it; the other streams go on
