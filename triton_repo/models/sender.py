"""A response sender that may be asked and used from several threads."""

from __future__ import annotations

import threading
from typing import Any

import triton_python_backend_utils as pb_utils

from .spent import SPENT

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Sender:
    """Responses of one request, in order, the final one once.

    With the final response the server frees what `is_cancelled` looks at, so asking at that moment
    or later crashes the server: a lock keeps the two apart.

    Outputs that a request did not ask for are dropped from the response while the interpreter's
    lock is released; numpy arrays that die then corrupt the heap of servers of 2024 (seen on 2.51;
    from 24.12 on PbTensor's destructor takes the lock). So Python holds them until they are sent.
    Followed: python_backend r24.10, response_sender.cc, infer_response.cc (PruneOutputTensors).
    """

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self._lock = threading.Lock()
        self._ended = False
        self._cancelled = False

    def send(self, response: Any = None, *, final: bool = False) -> None:
        """Sends a response; `final` ends the request, with or without one."""
        with self._lock:
            self._ended = self._ended or final
            if response is None:
                self._sender.send(flags=FINAL)
            else:
                held = response.output_tensors()
                self._sender.send(response, flags=FINAL if final else 0)
                held.clear()  # here, where this thread has the interpreter's lock

    def give_up(self) -> None:
        """From now on the request counts as cancelled."""
        with self._lock:
            self._cancelled = True

    def is_cancelled(self) -> bool:
        """Whether the client gave up; a question to the server that takes about 0.1 ms."""
        with self._lock:
            if not self._ended and not self._cancelled:
                with SPENT.released():
                    self._cancelled = bool(self._sender.is_cancelled())
            return self._cancelled and not self._ended
