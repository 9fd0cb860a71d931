"""Options that several commands share, and the configuration that they spell out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..core.config import DyCokeConfig

Bundle = Annotated[Path, typer.Argument(help="Bundle directory.", show_default=False)]
Video = Annotated[Path | None, typer.Option("--video", help="Video file.")]
Frames = Annotated[int, typer.Option("--frames", help="Frames sampled from the video.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Longest answer.")]
K = Annotated[float, typer.Option("--k", help="TTM pruning rate K, 0 <= K < 1.")]
L = Annotated[int, typer.Option("--l", help="Attention evaluation layer L; layers >= L prune.")]
P = Annotated[float, typer.Option("--p", help="KV pruning rate P in decoding, 0 <= P < 1.")]
Gate = Annotated[str, typer.Option("--gate", help="reuse, full, always or once.")]
Model = Annotated[
    str, typer.Option("--model", help="Preset: llava-ov-0.5b, llava-ov-7b or llava-ov-72b.")
]
Bandwidth = Annotated[
    float | None, typer.Option("--bandwidth", help="Instead, with --flops: memory's, in GB/s.")
]
Tflops = Annotated[
    float | None, typer.Option("--flops", help="Instead, with --bandwidth: dense bf16 TFLOP/s.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

BuiltTarget = Annotated[
    str, typer.Option("--target", help="What was built: cpu, cuda, h100 and so on.")
]
VisionStep = Annotated[
    str, typer.Option("--vision", help="What runs the vision step: auto, native, tensorrt or rtx.")
]
VisionCudaGraph = Annotated[
    bool, typer.Option("--vision-cuda-graph", help="With --vision rtx: replay it as a CUDA graph.")
]


def refuse_idle(why: str, **options: Any) -> None:
    """Raises DyCokeError for the first of these options that was given, though it has no effect.

    why: where that is so. None, False and "" were not given.
    """
    from ..core.errors import DyCokeError

    for name, value in options.items():
        if not (value is None or value is False or value == ""):
            shown = "" if value is True else f" {value}"
            raise DyCokeError(f"--{name.replace('_', '-')}{shown} has no effect {why}")


def dycoke_config(**fields: Any) -> DyCokeConfig:
    from ..core.config import DyCokeConfig

    return DyCokeConfig.from_dict(fields)


def preset_config(name: str) -> DyCokeConfig:
    from ..core.config import DyCokeConfig
    from ..core.errors import DyCokeError

    presets = {"tuned": DyCokeConfig.tuned, "paper": DyCokeConfig.paper}
    if name not in presets:
        raise DyCokeError(f"unknown preset {name!r}; allowed: {', '.join(presets)}")
    return presets[name]()
