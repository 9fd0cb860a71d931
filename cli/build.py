"""`dycoke build`: a bundle's engines for one target, or with --dry-run the plan of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AsJson, dycoke_config, require

if TYPE_CHECKING:
    from ..engines.build_plan import BuildPlan, Model
    from ..engines.targets import Target


def build(
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle directory.", show_default=False)
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="cpu or cuda (native backend); a100, a10, l4, l40s, rtx4090, h100, h200, b200 or "
            "this-gpu (TensorRT). Repeat it with --vision rtx: one engine for all.",
            show_default=False,
        ),
    ] = None,
    vision: Annotated[
        str | None,
        typer.Option(
            "--vision",
            help="Engines: tensorrt (default), built with the LLM's on its GPU; or rtx, the vision "
            "step alone by TensorRT for RTX, on any machine.",
            show_default=False,
        ),
    ] = None,
    strip_weights: Annotated[
        bool,
        typer.Option("--strip-weights", help="With --vision rtx: weights come from the bundle."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be built; needs no GPU.")
    ] = False,
    tokens_per_block: Annotated[
        int | None,
        typer.Option("--tokens-per-block", help="Tokens of a KV block; 16 on a CPU, else 32."),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option("--max-batch", help="Sequences at once; 16 on a CPU, else what fits."),
    ] = None,
    kv_tokens: Annotated[
        int | None,
        typer.Option("--kv-tokens", help="cpu, cuda: capacity of the KV pool in tokens."),
    ] = None,
    kv_fraction: Annotated[
        float | None,
        typer.Option("--kv-fraction", help="GPU: KV pool's share of what weights leave; 0.9."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="With --dry-run instead of BUNDLE: llava-ov-7b and so on."),
    ] = None,
    tp: Annotated[
        int | None, typer.Option("--tp", help="With --model: GPUs of the LLM; default 1.")
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option("--max-frames", help="With --model: of a video; default 64.")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            help="Engines: latency, balanced or throughput, which sets --max-batch; balanced.",
        ),
    ] = None,
    plugin_interface: Annotated[
        str | None,
        typer.Option(
            "--plugin-interface", help="Engines: v3 or v2, by which TensorRT runs the plugins; v3."
        ),
    ] = None,
    plugin: Annotated[
        Path | None,
        typer.Option("--plugin", help="Engines: the plugin library, if not build/plugin/'s."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build a bundle's engines for one target; cpu, cuda: load and try it, and write the record."""
    from ..core.errors import DyCokeError

    targets = target or []
    if vision not in (None, "tensorrt", "rtx"):
        raise DyCokeError(f"--vision {vision!r} is not allowed; allowed: tensorrt, rtx")
    if vision == "rtx":
        others = {
            "--dry-run": dry_run,
            "--tokens-per-block": tokens_per_block,
            "--max-batch": max_batch,
            "--kv-tokens": kv_tokens,
            "--kv-fraction": kv_fraction,
            "--model": model,
            "--tp": tp,
            "--max-frames": max_frames,
            "--json": as_json,
            "--profile": profile,
            "--plugin-interface": plugin_interface,
            "--plugin": plugin,
        }
        _build_rtx(bundle, targets, others, strip_weights=strip_weights)
        return
    if strip_weights:
        raise DyCokeError("--strip-weights has no effect without --vision rtx")
    if len(targets) > 1:
        raise DyCokeError(
            f"--target {' --target '.join(targets)}: only --vision rtx builds for several GPUs"
        )
    (gpu,) = targets or [""]
    if vision is not None and gpu in ("cpu", "cuda"):
        raise DyCokeError(f"--vision {vision} has no effect with --target {gpu}")
    if not gpu:
        raise DyCokeError("--target is missing; run: dycoke build BUNDLE --target cpu (or a GPU)")
    if (bundle is None) == (model is None):
        raise DyCokeError("give BUNDLE, or with --dry-run --model NAME instead of it")
    if model is None and (tp, max_frames) != (None, None):
        raise DyCokeError("--tp and --max-frames are for --model; a bundle has its own")
    if as_json and not dry_run:
        raise DyCokeError("--json has no effect without --dry-run")
    given = {"--profile": profile, "--plugin-interface": plugin_interface, "--plugin": plugin}
    if gpu in ("cpu", "cuda"):
        for name, value in given.items():
            if value is not None:
                raise DyCokeError(f"{name} {value} has no effect with --target {gpu}")
    if gpu == "cpu":
        if kv_fraction is not None:
            raise DyCokeError("--kv-fraction is for GPUs; on a CPU use --kv-tokens")
        if dry_run or bundle is None:
            raise DyCokeError("--target cpu compiles nothing: leave out --dry-run and give BUNDLE")
        options = {"kv_tokens": kv_tokens, "tokens_per_block": tokens_per_block}
        _build_cpu(bundle, {**options, "max_batch": max_batch})
        return
    if gpu == "cuda":
        if dry_run or bundle is None:
            raise DyCokeError("--target cuda compiles nothing: leave out --dry-run and give BUNDLE")
        options = {"kv_tokens": kv_tokens, "tokens_per_block": tokens_per_block}
        _build_gpu(bundle, {**options, "max_batch": max_batch, "kv_fraction": kv_fraction})
        return
    from ..engines.build_plan import plan_build
    from ..engines.model import model_of_bundle, model_of_preset
    from ..engines.plugin_interfaces import V3
    from ..engines.targets import find_target

    found = find_target(gpu)
    if kv_tokens is not None:
        raise DyCokeError("--kv-tokens is for cpu and cuda; for engines use --kv-fraction")
    if model is not None:
        known = model_of_preset(
            model,
            tp=1 if tp is None else tp,
            max_frames=64 if max_frames is None else max_frames,
            config=dycoke_config(),
        )
    else:
        assert bundle is not None
        known = model_of_bundle(bundle)
    plan = plan_build(
        known,
        found,
        tokens_per_block=32 if tokens_per_block is None else tokens_per_block,
        max_batch=max_batch,
        profile=profile,
        plugin_interface=plugin_interface or V3,
        kv_fraction=0.9 if kv_fraction is None else kv_fraction,
    )
    if dry_run:
        if plugin is not None:
            raise DyCokeError(f"--plugin {plugin} has no effect with --dry-run")
        _show(known, found, plan, as_json=as_json)
        return
    if bundle is None:
        raise DyCokeError("--model is for --dry-run; export the checkpoint, then build the bundle")
    from ..engines.build import build_engines

    typer.echo(f"{build_engines(bundle, plan, plugin)} written")


def _build_rtx(
    bundle: Path | None, targets: list[str], others: dict[str, Any], *, strip_weights: bool
) -> None:
    from ..core.errors import DyCokeError

    if bundle is None or not targets:
        raise DyCokeError(
            "--vision rtx compiles a bundle for GPUs: dycoke build BUNDLE --vision rtx --target "
            "rtx4090"
        )
    if idle := [option for option, value in others.items() if value not in (None, False)]:
        raise DyCokeError(f"{idle[0]} has no effect with --vision rtx, which builds no LLM engine")
    from ..bundle.vision_record import VisionRecord
    from ..engines.vision_rtx import build_rtx_engine

    path = build_rtx_engine(bundle, targets, strip_weights=strip_weights)
    record = VisionRecord.model_validate_json(path.read_text())
    size = sum(part.size for part in record.files.values())
    typer.echo(
        f"{path} written: {record.library} {record.version}, "
        f"{', '.join(f'sm_{sm}' for sm in record.sms)}, {size / 1e6:.0f} MB, {record.dtype}, "
        f"{record.checked_layers} layers; built in {record.build_seconds:.1f} s, not run"
    )


def _build_cpu(bundle: Path, options: dict[str, int | None]) -> None:
    require("onnxruntime", extra="cpu")
    from ..engines.cpu import build_cpu

    defaults = {"kv_tokens": 16_384, "tokens_per_block": 16, "max_batch": 16}
    given = {name: value for name, value in options.items() if value is not None}
    typer.echo(f"{build_cpu(bundle, **{**defaults, **given})} written")


def _build_gpu(bundle: Path, options: dict[str, Any]) -> None:
    from ..bundle.record import EngineRecord
    from ..runtime.build_gpu import build_gpu

    given = {name: value for name, value in options.items() if value is not None}
    path = build_gpu(bundle, **given)
    record = EngineRecord.model_validate_json(path.read_text())
    typer.echo(
        f"{path} written: {record.options['gpu']}, KV pool of {record.kv_tokens:,} tokens, "
        f"batches of up to {record.max_batch}"
    )


def _show(model: Model, target: Target, plan: BuildPlan, *, as_json: bool) -> None:
    from ..engines.plan_report import floor_rows, plan_json, plan_rows

    if as_json:
        typer.echo(json.dumps(plan_json(model, target, plan), indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"{plan.model} on {plan.target}", title_justify="left", show_header=False)
    for row in plan_rows(plan):
        table.add_row(*row)
    console.print(table)
    table = Table(title="videos at once, with their answers", title_justify="left")
    for column in ("frames", "K", "visual tokens", "videos"):
        table.add_column(column, justify="right")
    for videos in plan.videos:
        counts = (f"{videos.visual_tokens:,}", f"{videos.concurrent:,}")
        table.add_row(str(videos.frames), f"{videos.k:g}", *counts)
    console.print(table)
    if rows := floor_rows(model, target, plan):
        table = Table(title=f"floors, {model.max_frames} frames", title_justify="left")
        for column in ("stage", "batch", "least ms", "bound by"):
            table.add_column(column, justify="right")
        for stage, batch, time, bound in rows:
            table.add_row(stage, str(batch), f"{time:.2f}", bound)
        console.print(table)
