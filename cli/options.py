"""Options that several commands share, and the configuration that they spell out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..runtime.video.limits import VideoLimits

if TYPE_CHECKING:
    from ..core.config import DyCokeConfig

K = Annotated[float, typer.Option("--k", help="TTM pruning rate K, 0 <= K < 1.")]
L = Annotated[int, typer.Option("--l", help="Attention evaluation layer L; layers >= L prune.")]
P = Annotated[float, typer.Option("--p", help="KV pruning rate P in decoding, 0 <= P < 1.")]
Model = Annotated[
    str, typer.Option("--model", help="Preset: llava-ov-0.5b, llava-ov-7b or llava-ov-72b.")
]
VIDEO = VideoLimits()  # defaults of the options below
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

MaxVideoBytes = Annotated[
    int, typer.Option("--max-video-bytes", help="Largest encoded video that is read.")
]
MaxVideoPixels = Annotated[
    int, typer.Option("--max-video-pixels", help="Largest frame of a video: width x height.")
]
MaxVideoFrames = Annotated[
    int, typer.Option("--max-video-frames", help="Longest video, in frames of the file.")
]
MaxVideoSamples = Annotated[
    int, typer.Option("--max-video-samples", help="Most frames sampled from a video.")
]
MaxVideoSeconds = Annotated[
    float,
    typer.Option(
        "--max-video-seconds",
        help="Seconds of reading a video: a server's of the processor, else by the clock.",
    ),
]


def dycoke_config(**fields: Any) -> DyCokeConfig:
    from ..core.config import DyCokeConfig

    return DyCokeConfig.from_dict(fields)
