"""Keeps responses of a decoupled model until the server's own thread has let go of them.

An iterator of responses, `InferenceRequest.exec(decoupled=True)`, is held by Python and by a map in
the stub that runs the model. When its last response is read, the stub's messenger thread is told to
take it off the map; whoever lets go last destroys the tensors. If that is the messenger, numpy
arrays die without the interpreter's lock, and the process crashes somewhere later (servers of 2024,
seen on 2.51: PbTensor's destructor takes no lock), or it waits for that lock with the map locked,
which the thread that holds it may want (servers of 2026). So Python has to let go last.

The messenger works in order, and it also carries the question whether a request was cancelled: once
that is answered, everything that it had been told before is done. A cancelled request's answer is
remembered by the stub and asks nobody; `Sender` does not come here then.

Followed: python_backend r24.10 and r26.07, pb_stub.cc (SendCleanupId, ServiceStubToParentRequests),
pb_response_iterator.cc, pb_tensor.cc, pb_cancel.cc.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Spent:
    """Objects to hold until a question that was asked after they came has been answered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[Any] = []

    def keep(self, responses: Any) -> None:
        with self._lock:
            self._kept.append(responses)

    def clear(self) -> None:
        """At the end, when no request is left."""
        with self._lock:
            self._kept.clear()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Around a question to the messenger: lets go of what had been kept before it."""
        with self._lock:
            before, self._kept = self._kept, []
        try:
            yield
        except BaseException:
            with self._lock:
                self._kept += before
            raise


SPENT = Spent()  # of this process: one model, one messenger
