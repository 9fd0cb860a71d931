"""Options that several commands share, and the configuration that they spell out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..core.config import DyCokeConfig

K = Annotated[float, typer.Option("--k", help="TTM pruning rate K, 0 <= K < 1.")]
L = Annotated[int, typer.Option("--l", help="Attention evaluation layer L; layers >= L prune.")]
P = Annotated[float, typer.Option("--p", help="KV pruning rate P in decoding, 0 <= P < 1.")]
Model = Annotated[
    str, typer.Option("--model", help="Preset: llava-ov-0.5b, llava-ov-7b or llava-ov-72b.")
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


def dycoke_config(**fields: Any) -> DyCokeConfig:
    from ..core.config import DyCokeConfig

    return DyCokeConfig.from_dict(fields)
