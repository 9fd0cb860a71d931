"""`dycoke export` and `verify`: a bundle's beginning, and the proof that it is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..core.extras import require
from .options import AsJson, Bundle, preset_config, refuse_idle
from .tables import print_table

VisionTower = Annotated[
    Path | None,
    typer.Option("--vision-tower", help="SigLIP directory, if the checkpoint lacks it."),
]


def export(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle to write.")],
    preset: Annotated[
        str,
        typer.Option("--preset", help="tuned or paper; the options below change it."),
    ] = "tuned",
    k: Annotated[
        float | None, typer.Option("--k", help="TTM pruning rate K, 0 <= K < 1; default 0.7.")
    ] = None,
    l: Annotated[
        int | None, typer.Option("--l", help="Layers >= L prune in decoding; default 3.")
    ] = None,
    p: Annotated[
        float | None, typer.Option("--p", help="KV pruning rate P, 0 <= P < 1; default 0.7.")
    ] = None,
    ttm: Annotated[str | None, typer.Option("--ttm", help="paper or off.")] = None,
    gate: Annotated[str | None, typer.Option("--gate", help="reuse, full, always or once.")] = None,
    memory: Annotated[
        float | None,
        typer.Option("--memory", help="Weight of the past in averaged scores, 0 <= M < 1."),
    ] = None,
    order: Annotated[
        str | None, typer.Option("--order", help="How tokens lie in blocks: raster or importance.")
    ] = None,
    granularity: Annotated[
        str | None, typer.Option("--granularity", help="block, or token (native backend alone).")
    ] = None,
    block_reduce: Annotated[
        str | None, typer.Option("--block-reduce", help="In raster order: sum or max.")
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32, float16 or bfloat16.")
    ] = "bfloat16",
    tp: Annotated[int, typer.Option("--tp", help="Ranks of the LLM (tensor parallelism).")] = 1,
    max_frames: Annotated[int, typer.Option("--max-frames", help="Most frames per video.")] = 64,
    vision_tower: VisionTower = None,
    kernel_target: Annotated[
        str,
        typer.Option("--kernel-target", help="Kernel images for these GPUs: sm_90,ptx; all; none."),
    ] = "all",
    force: Annotated[bool, typer.Option("--force", help="Replace an old bundle.")] = False,
) -> None:
    """Turn a LLaVA-OneVision checkpoint into a bundle: graph, LLM, kernel images, tokenizer."""
    require("jinja2", "onnx", "onnxscript", "transformers", extra="export")
    targets = () if kernel_target == "none" else tuple(kernel_target.split(","))
    if targets:
        require("triton", extra="export")
    from ..export.bundle import export_bundle

    given = {
        "k": k, "l": l, "p": p, "ttm": ttm, "gate": gate, "memory": memory, "order": order,
        "granularity": granularity, "block_reduce": block_reduce,
    }  # fmt: skip
    if p == 0:
        selecting = {"l": l, "gate": gate, "memory": memory, "order": order}
        refuse_idle("with --p 0", **selecting, granularity=granularity, block_reduce=block_reduce)
    if granularity == "token":
        refuse_idle("with --granularity token", order=order, block_reduce=block_reduce)
        given["order"] = "raster"
    chosen = {name: value for name, value in given.items() if value is not None}
    config = preset_config(preset).with_changes(**chosen)
    manifest = export_bundle(
        model,
        output,
        config,
        dtype=dtype,
        tp=tp,
        max_frames=max_frames,
        vision_tower=vision_tower,
        kernel_targets=targets,
        replace=force,
    )
    size = sum(part.size for part in manifest.parts.values())
    typer.echo(f"{output}: {len(manifest.parts)} files, {size / 1e6:,.1f} MB, {dtype}, TP={tp}")
    typer.echo(f"{config}")
    tower = f" --vision-tower {vision_tower}" if vision_tower else ""
    typer.echo(f"next: dycoke verify {output} --source {model}{tower}")


def verify(
    bundle: Bundle,
    source: Annotated[
        Path | None, typer.Option("--source", help="The checkpoint it was exported from.")
    ] = None,
    vision_tower: VisionTower = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="Also the engines of this target, on its GPU."),
    ] = None,
    vision: Annotated[
        str,
        typer.Option("--vision", help="With --target: tensorrt, or rtx for that engine too."),
    ] = "tensorrt",
    as_json: AsJson = False,
) -> None:
    """Check every byte of a bundle, and with --source its numbers against the source model."""
    if source is not None:
        require("onnx", "onnxruntime", "polygraphy", "transformers", extra="verify")
    from ..core.errors import DyCokeError
    from ..runtime.vision import RTX, TENSORRT
    from ..verify.run import verify_bundle, verify_engines

    if vision not in (TENSORRT, RTX):
        raise DyCokeError(f"--vision {vision!r} is not allowed; allowed: tensorrt, rtx")
    if vision == RTX and target is None:
        raise DyCokeError("--vision rtx has no effect without --target; add --target cuda")
    if source is None:
        refuse_idle("without --source", vision_tower=vision_tower)
    checks = list(verify_bundle(bundle, source, vision_tower))
    if target is not None:
        checks += verify_engines(bundle, target, vision)
    failed = [check for check in checks if not check.passed]
    if as_json:
        typer.echo(json.dumps([check._asdict() for check in checks], indent=2))
    else:
        columns = ("stage", "result", "measured", "bound", "")
        results = {True: "[green]pass[/]", False: "[bold red]FAIL[/]"}
        rows = [
            (c.stage, results[c.passed], f"{c.measured:.3g}", f"{c.bound:.3g}", c.unit)
            for c in checks
        ]
        print_table(f"{bundle}", columns, rows, text=len(columns))
        if source is None:
            typer.echo("files only; add --source MODEL_DIR to compare numbers with the source")
    if failed:
        raise typer.Exit(1)
