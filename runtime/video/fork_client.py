"""Videos read by processes of their own, as seen by the process that wants the frames.

An order is JSON and three descriptors: the end of a pipe with which the process ends, a socket that
it answers on, and the source in memory. Answers: LONG, then the frames in memory, or an error. A
socket that closes without an answer is a process that died.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from ...core.errors import DyCokeError, TimeLimitError
from . import fork_server
from .fork_server import LONG, MESSAGE_BYTES, READY
from .work import Frames, VideoWork

_LOOK_SECONDS = 0.1  # between questions whether the frames are still wanted
# By the clock a video may take as many times its limit, which is of the processor's time: a long
# one has to give way to others.
_PATIENCE = 10
LONG_SECONDS = 0.25


class VideoProcesses:
    """Starts the fork server; one that died is started again for the next video. long_seconds: of
    the processor, after which a video is a long one and gives way to others."""

    def __init__(self, long_seconds: float = LONG_SECONDS) -> None:
        self.long_seconds = long_seconds
        self._lock = threading.Lock()
        self._orders, self._server = _start()

    def run(
        self,
        work: VideoWork,
        *,
        spent: float = 0.0,
        still_wanted: Callable[[], None] = lambda: None,
        on_long: Callable[[], None] = lambda: None,
    ) -> Frames:
        """The frames, from a process that lives until this returns or raises.

        spent: seconds of the processor that an earlier try had. still_wanted: asked ten times a
        second, raises where the frames are not; on_long: called once the video is a long one, may
        raise too. Raises DyCokeError as `VideoWork.run` does, TimeLimitError where others leave it
        too little of the processor, RuntimeError for a process that died or failed.
        """
        patience = _PATIENCE * work.limits.max_seconds
        until = time.monotonic() + patience
        with self._process(work, spent) as answers:
            while True:
                if not select.select([answers], [], [], _LOOK_SECONDS)[0]:
                    still_wanted()
                    if time.monotonic() > until:
                        raise TimeLimitError(
                            f"the video was not read within {patience:g} s beside other requests; "
                            "try again later"
                        )
                    continue
                message, descriptors, _, _ = socket.recv_fds(answers, MESSAGE_BYTES, 1)
                if message == LONG:
                    on_long()
                elif not message:
                    raise RuntimeError(
                        "the process that read the video died: a fault of the decoder, or no memory"
                    )
                else:
                    return _frames(json.loads(message), descriptors)

    @property
    def server(self) -> int:
        """The fork server's process id."""
        return self._server.pid

    def close(self) -> None:
        """Ends the fork server; what still runs ends with whoever waits for it."""
        with self._lock:
            self._orders.close()
            self._server.wait()

    @contextmanager
    def _process(self, work: VideoWork, spent: float) -> Iterator[socket.socket]:
        order: dict[str, Any] = {
            "num_frames": work.num_frames,
            "size": work.size,
            "limits": asdict(work.limits),
            "shape": work.source.shape if isinstance(work.source, np.ndarray) else None,
            "long_seconds": self.long_seconds,
            "spent": spent,
        }
        with ExitStack() as stack:
            lifeline, ours = os.pipe()
            stack.callback(os.close, ours)  # which ends the process
            answers, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(answers)
            try:
                source = _in_memory(work.source)
                try:
                    self._send(json.dumps(order).encode(), [lifeline, theirs.fileno(), source])
                finally:
                    os.close(source)
            finally:
                os.close(lifeline)
                theirs.close()
            yield answers

    def _send(self, order: bytes, descriptors: list[int]) -> None:
        with self._lock:
            try:
                socket.send_fds(self._orders, [order], descriptors)
            except (BrokenPipeError, ConnectionResetError):
                self._orders.close()
                self._server.wait()
                self._orders, self._server = _start()
                socket.send_fds(self._orders, [order], descriptors)


def _start() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", fork_server.__name__]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with theirs:
        server = subprocess.Popen(command, stdin=theirs.fileno(), env=environment)
    if orders.recv(MESSAGE_BYTES) != READY:
        orders.close()
        server.wait()
        raise RuntimeError(f"{' '.join(command)} did not start; the log says why")
    return orders, server


def _in_memory(source: Any) -> int:
    """The descriptor of a file in memory that holds it."""
    descriptor = os.memfd_create("video", os.MFD_CLOEXEC)
    if isinstance(source, np.ndarray):
        source = np.ascontiguousarray(source).data
    left = memoryview(source).cast("B")
    try:
        while left:
            left = left[os.write(descriptor, left) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _frames(answer: dict[str, Any], descriptors: list[int]) -> Frames:
    if "refused" in answer:
        raise DyCokeError(answer["refused"])
    if "failed" in answer:
        raise RuntimeError(f"reading the video failed in its process:\n{answer['failed']}")
    (result,) = descriptors
    try:
        memory = mmap.mmap(result, 0)
    finally:
        os.close(result)
    frames: Frames = np.frombuffer(memory, np.uint8)
    return frames.reshape(answer["shape"])
