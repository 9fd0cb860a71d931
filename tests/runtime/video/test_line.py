"""Videos in processes of their own: the same frames, who goes first, and what ends one of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from dycoke_trt.core.errors import DyCokeError, TimeLimitError
from dycoke_trt.runtime.video.fork_client import VideoProcesses
from dycoke_trt.runtime.video.limits import VideoLimits
from dycoke_trt.runtime.video.line import GiveWay, Turn, VideoLine, VideoReader
from dycoke_trt.runtime.video.work import VideoWork
from dycoke_trt.tests.runtime.video.test_cases import DATA
from dycoke_trt.tests.support import until

LIMITS = VideoLimits()
LONG_SECONDS = 0.02  # so that long videos take a test little time
SHORT = VideoWork((DATA / "rot90.mp4").read_bytes(), 8, 32, LIMITS)


class NotWantedError(Exception):
    pass


def raise_not_wanted() -> None:
    raise NotWantedError


@pytest.fixture(scope="module")
def long_work() -> VideoWork:
    """A tenth of a second of a processor or more: several times what makes a long one here."""
    return VideoWork(np.full((24, 720, 1280, 3), 7, np.uint8), 24, 32, LIMITS)


@pytest.fixture(scope="module")
def processes() -> Iterator[VideoProcesses]:
    made = VideoProcesses(LONG_SECONDS)
    yield made
    made.close()


def children(processes: VideoProcesses) -> list[int]:
    """Processes that read a video now."""
    pid = processes.server
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def nice_of(pid: int) -> set[int]:
    return {
        os.getpriority(os.PRIO_PROCESS, int(thread.name))
        for thread in Path(f"/proc/{pid}/task").iterdir()
    }


def test_a_process_gives_what_reading_here_gives(
    processes: VideoProcesses, long_work: VideoWork
) -> None:
    assert np.array_equal(processes.run(SHORT), SHORT.run())
    pixels = SHORT._replace(source=np.random.default_rng(0).integers(0, 256, (4, 50, 70, 3), "u1"))
    assert np.array_equal(processes.run(pixels), pixels.run())
    told: list[set[int]] = []
    processes.run(long_work, on_long=lambda: told.extend(map(nice_of, children(processes))))
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert told == [{min(own + 10, 19)}]
    until(lambda: not children(processes))


def test_refusals_are_those_of_reading_here(processes: VideoProcesses) -> None:
    for work in (
        SHORT._replace(source=b"nonsense"),
        SHORT._replace(limits=VideoLimits(max_bytes=100)),
        SHORT._replace(limits=VideoLimits(max_pixels=100)),
    ):
        with pytest.raises(DyCokeError) as here:
            work.run()
        with pytest.raises(DyCokeError) as there:
            processes.run(work)
        assert str(there.value) == str(here.value)


def test_a_video_has_its_time_of_the_processor(
    processes: VideoProcesses, long_work: VideoWork
) -> None:
    limits = VideoLimits(max_seconds=2 * LONG_SECONDS)
    with pytest.raises(DyCokeError, match=r"more seconds of decoding; allowed: up to 0\.04"):
        processes.run(long_work._replace(limits=limits))


def test_a_process_that_hangs_is_ended(processes: VideoProcesses, long_work: VideoWork) -> None:
    def stop() -> None:
        for child in children(processes):
            os.kill(child, signal.SIGSTOP)

    limits = VideoLimits(max_seconds=3 * LONG_SECONDS)
    with pytest.raises(TimeLimitError, match=r"not read within 0\.6 s beside other requests"):
        processes.run(long_work._replace(limits=limits), on_long=stop)
    until(lambda: not children(processes))


def test_a_video_that_is_not_wanted_any_more_ends_at_once(
    processes: VideoProcesses, long_work: VideoWork
) -> None:
    with pytest.raises(NotWantedError):
        processes.run(long_work, on_long=raise_not_wanted)
    until(lambda: not children(processes))


def test_a_process_that_dies_takes_its_own_video_alone(
    processes: VideoProcesses, long_work: VideoWork
) -> None:
    def kill() -> None:
        for child in children(processes):
            os.kill(child, signal.SIGKILL)

    with pytest.raises(RuntimeError, match="the process that read the video died"):
        processes.run(long_work, on_long=kill)
    assert np.array_equal(processes.run(SHORT), SHORT.run())


def test_a_fork_server_that_dies_is_replaced(
    processes: VideoProcesses, long_work: VideoWork
) -> None:
    """What it had begun goes on."""
    frames = processes.run(long_work, on_long=lambda: os.kill(processes.server, signal.SIGKILL))
    assert (frames == 7).all()
    assert np.array_equal(processes.run(SHORT), SHORT.run())


def test_nothing_outlives_whoever_waits_for_it() -> None:
    """Not the fork server either, though nobody closes it."""
    source = (
        "import sys, numpy as np\n"
        "from dycoke_trt.runtime.video.fork_client import VideoProcesses\n"
        "from dycoke_trt.runtime.video.limits import VideoLimits\n"
        "from dycoke_trt.runtime.video.work import VideoWork\n"
        "work = VideoWork(np.zeros((24, 720, 1280, 3), np.uint8), 24, 32, VideoLimits())\n"
        f"processes = VideoProcesses({LONG_SECONDS})\n"
        "processes.run(work, on_long=lambda: print(processes.server, flush=True))\n"
    )
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        group = [
            server,
            *map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split()),
        ]
        assert len(group) == 2
        process.kill()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in group))


def start(line: VideoLine, turn: Turn, order: list[str], name: str, go: threading.Event) -> None:
    with line.place(turn, lambda: None):
        order.append(name)
        go.wait()


def test_few_bytes_go_first_and_nobody_is_passed_for_ever() -> None:
    first, small, large, later = Turn(0), Turn(1_000), Turn(50_000_000), Turn(0)
    assert first.key <= small.key < large.key
    assert later.key < large.key
    later.key += 5.0  # comes five seconds later
    assert large.key < Turn(10**12).key
    assert Turn(10**12).key - later.key < 10.0
    later.key = large.key + 0.001  # comes a little more than five seconds later
    line, go, order = VideoLine(1, 60.0), threading.Event(), ["held"]
    with ThreadPoolExecutor(3) as threads, line.place(Turn(0), lambda: None):
        for name, turn in (("later", later), ("large", large), ("small", small)):
            threads.submit(start, line, turn, order, name, go)
        until(lambda: line.waiting == 3)
        go.set()
    assert order == ["held", "small", "large", "later"]


def test_long_ones_leave_the_places_of_short_ones_free() -> None:
    line = VideoLine(1, 60.0)
    long, second = Turn(0), Turn(0)
    with line.place(long, lambda: None):
        line.lengthen(long)
        with ExitStack() as stack:  # a place is free at once
            stack.enter_context(line.place(second, raise_not_wanted))
            with pytest.raises(GiveWay):  # one long one runs
                line.lengthen(second)
        # It is in the line of long ones now, and waits.
        with pytest.raises(NotWantedError), line.place(second, raise_not_wanted):
            pass
        with line.place(Turn(0), raise_not_wanted):
            pass
    with line.place(second, raise_not_wanted):
        pass


def test_a_wait_is_bounded() -> None:
    line = VideoLine(1, 0.01)
    with (
        line.place(Turn(0), lambda: None),
        pytest.raises(TimeLimitError, match=r"more than 0\.01 s"),
        line.place(Turn(0), lambda: None),
    ):
        pass
    assert line.waiting == 0


def test_short_videos_pass_long_ones(long_work: VideoWork) -> None:
    """Four times as many long ones as may be read at once, which come first."""
    reader = VideoReader(1, 60.0, LONG_SECONDS)
    order: list[str] = []

    def read(name: str, work: VideoWork) -> None:
        reader.read(work, lambda: None)
        order.append(name)

    with ThreadPoolExecutor(5) as threads:
        done = [threads.submit(read, "long", long_work) for _ in range(4)]
        until(lambda: reader.waiting == 3)
        done.append(threads.submit(read, "short", SHORT))
        for one in done:
            one.result()
    reader.close()
    assert "short" in order[:2]
