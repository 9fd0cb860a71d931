"""Gives every video a process of its own: forked, in milliseconds, from one that has all imports.

    python -m dycoke_trt.runtime.video.fork_server    (standard input: a socket that orders come on)

A process can be given little of the processor, and be ended at any moment; a file that crashes the
decoder, or takes all memory, ends itself alone. fork_client.py describes orders, each with three
descriptors, and answers. Only what reading needs is imported: no torch, no threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import math
import mmap
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import DyCokeError
from .limits import VideoLimits
from .work import Frames, VideoWork

MESSAGE_BYTES = 65_536
READY, LONG = b"ready", b"long"
# Of a process that reads a long video: those that ask for the same core share it by weights, of
# which nice 0 has 1,024 and 10 has 110 (sched(7)). So it does not starve.
_NICE = 10


def main() -> None:
    """Serves until the other end of the socket is closed."""
    import PIL.Image  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for others; these end with their sockets
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes their status
    gc.freeze()
    with socket.socket(fileno=os.dup(0)) as orders:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        orders.send(READY)
        while True:
            message, descriptors, _, _ = socket.recv_fds(orders, MESSAGE_BYTES, 3)
            if not message:
                return
            try:
                if os.fork() == 0:
                    orders.close()
                    _carry_out(json.loads(message), *descriptors)
            except OSError:  # no memory, too many processes: its channel closes without an answer
                traceback.print_exc()
            for descriptor in descriptors:
                os.close(descriptor)


def _carry_out(order: dict[str, Any], lifeline: int, channel: int, source: int) -> None:
    """One video, in a process that ends here."""
    try:
        _end_with(lifeline)
        # Where memory runs out this is what the kernel ends, and no other process of the server.
        Path("/proc/self/oom_score_adj").write_text("1000")
        with socket.socket(fileno=channel) as answers:
            work = _work(order, source)
            try:
                _Pace(answers, work.limits, order["long_seconds"], order["spent"]).keep()
                # The clock is the parent's business.
                frames = work._replace(limits=replace(work.limits, max_seconds=math.inf)).run()
            except DyCokeError as error:
                answers.send(json.dumps({"refused": str(error)}).encode())
            except BaseException:
                text = traceback.format_exc()[-MESSAGE_BYTES // 8 :]
                answers.send(json.dumps({"failed": text}).encode())
            else:
                _answer(answers, frames)
    finally:
        os._exit(0)


def _end_with(lifeline: int) -> None:
    """SIGKILL comes when the other end of that pipe closes, whatever this process does then."""
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    os.set_blocking(lifeline, False)
    with contextlib.suppress(BlockingIOError):
        if os.read(lifeline, 1) == b"":
            os._exit(0)  # it had closed before


class _Pace:
    """Gives way to others once this video is a long one, and ends it once it has had its time of
    the processor. By the clock it may take as long as its parent waits. spent: seconds of the
    processor that an earlier try at the same video had, which made it a long one."""

    def __init__(
        self, answers: socket.socket, limits: VideoLimits, long_seconds: float, spent: float
    ) -> None:
        self._answers, self._limits = answers, limits
        self._long_seconds, self._spent = long_seconds, spent
        self._told = spent > 0
        signal.signal(signal.SIGPROF, lambda *_: self.keep())

    def keep(self) -> None:
        """Raises DyCokeError wherever this process is, once its time is over."""
        used, end = time.process_time(), self._limits.max_seconds
        if used > end:
            self._limits.refuse("max_seconds", "more")
        if self._spent + used >= self._long_seconds:
            _give_way()
            if not self._told:
                self._told = True
                self._answers.send(LONG)
        else:
            end = self._long_seconds - self._spent
        signal.setitimer(signal.ITIMER_PROF, max(end - used, 0.01))  # of all threads together


def _give_way() -> None:
    priority = min(os.getpriority(os.PRIO_PROCESS, os.getppid()) + _NICE, 19)
    for thread in Path("/proc/self/task").iterdir():  # the decoder's too
        with contextlib.suppress(OSError):  # it ended
            os.setpriority(os.PRIO_PROCESS, int(thread.name), priority)


def _work(order: dict[str, Any], source: int) -> VideoWork:
    count, size, limits = order["num_frames"], order["size"], VideoLimits(**order["limits"])
    if order["shape"] is None:
        return VideoWork(os.fdopen(source, "rb"), count, size, limits)
    pixels: Frames = np.frombuffer(mmap.mmap(source, 0, prot=mmap.PROT_READ), np.uint8)
    return VideoWork(pixels.reshape(order["shape"]), count, size, limits)


def _answer(answers: socket.socket, frames: Frames) -> None:
    result = os.memfd_create("frames")
    os.truncate(result, frames.nbytes)
    np.frombuffer(mmap.mmap(result, frames.nbytes), np.uint8)[:] = frames.reshape(-1)
    socket.send_fds(answers, [json.dumps({"shape": frames.shape}).encode()], [result])


if __name__ == "__main__":
    main()
    sys.exit(0)
