"""Sampled frames of long and of large videos: the product against decord, in turns.

    flock LOCK python -m dycoke_trt.bench.experiments.video [--other PYTHON] [--repeats 3] [-o FILE]

--other: a Python that has decord (its wheel wants numpy and no torch). Inputs are made here: one
clip of moving pictures, encoded once and repeated by copying its packets to 10 minutes of 720p and
2 hours of 1080p, and one second of 8K. Both sides give 16 frames of 384 x 384 and run as processes
of their own: seconds are those of reading alone, peak memory is that of the process, and beside it
what the process has before it reads. decord resizes by its own filter, so pictures differ, frames
do not. Processor time is what it costs where other processes want the cores too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..machine import machine

FRAMES, SIDE = 16, 384
KEYS = ("seconds", "processor_seconds", "peak_mib")
INPUTS = {  # width, height, seconds encoded, copies
    "720p, 10 minutes": (1280, 720, 20, 30),
    "1080p, 2 hours": (1920, 1080, 20, 360),
    "8K, 1 second": (7680, 4320, 1, 1),
}
MEASURE = """
import json, resource, sys, time
path, frames, side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
{prepare}
before, begun, worked = peak(), time.perf_counter(), time.process_time()
{read}
print(json.dumps({{"seconds": time.perf_counter() - begun, "peak_mib": peak(),
                  "processor_seconds": time.process_time() - worked,
                  "before_mib": before, "shape": list(got.shape)}}))
"""
PRODUCT = MEASURE.format(
    prepare="""
from pathlib import Path
import av, PIL.Image
from dycoke_trt.runtime.video.limits import VideoLimits
from dycoke_trt.runtime.video.read import read_video
limits = VideoLimits(max_bytes=1 << 40, max_seconds=3600)""",
    read="got = read_video(Path(path), frames, size=side, limits=limits)",
)
DECORD = MEASURE.format(
    prepare="import decord, numpy",
    read="""reader = decord.VideoReader(path, width=side, height=side)
chosen = numpy.linspace(0, len(reader) - 1, frames, dtype=int)
got = reader.get_batch(chosen).asnumpy()""",
)


def make(path: Path, width: int, height: int, seconds: int, copies: int) -> None:
    """Moving pictures, 30 a second, a keyframe every 250, as x264 does by itself."""
    import av

    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        packets: list[Any] = []
        rng = np.random.default_rng(0)
        ground = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        ground = ground.repeat(8, 0).repeat(8, 1)
        for i in range(seconds * 30):
            picture = np.roll(ground, (4 * i, 6 * i), (0, 1))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            packets += stream.encode(frame)
        packets += stream.encode()
        length = seconds * 30
        for copy in range(copies):
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.stream, again.is_keyframe = stream, packet.is_keyframe
                again.time_base = packet.time_base
                tick = Fraction(1, 30) / packet.time_base
                again.pts = packet.pts + int(copy * length * tick)
                again.dts = packet.dts + int(copy * length * tick)
                again.duration = int(tick)
                output.mux(again)


def measure(python: str, program: str, path: Path) -> dict[str, Any]:
    command = [python, "-c", program, str(path), str(FRAMES), str(SIDE)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keeps the inputs there")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    sides = {"product": (sys.executable, PRODUCT)}
    version = "absent"
    if options.other:
        sides["decord"] = (options.other, DECORD)
        ask = [options.other, "-c", "import decord; print(decord.__version__)"]
        version = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    report: dict[str, Any] = {
        "machine": machine("av", "pillow", "torch"), "decord": version, "frames": FRAMES,
        "side": SIDE, "repeats": options.repeats, "inputs": {},
    }  # fmt: skip
    with TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        for name, (width, height, seconds, copies) in INPUTS.items():
            path = folder / f"{width}x{height}x{seconds * copies}.mp4"
            if not path.exists():
                make(path, width, height, seconds, copies)
            runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for _ in range(options.repeats):
                for side, (python, program) in sides.items():
                    runs[side].append(measure(python, program, path))
            report["inputs"][name] = {"bytes": path.stat().st_size, "runs": runs, "medians": {
                side: {key: median(row[key] for row in rows) for key in KEYS}
                for side, rows in runs.items() if all("failed" not in row for row in rows)
            }}  # fmt: skip
            print(name, json.dumps(report["inputs"][name]["medians"]), flush=True)
            if options.output:
                options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
