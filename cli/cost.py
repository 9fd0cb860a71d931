"""`dycoke flops` and `dycoke floors`: what a video costs, and the least time that a GPU needs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    AsJson,
    Bandwidth,
    Frames,
    K,
    L,
    Model,
    P,
    Tflops,
    dycoke_config,
)
from .tables import print_table

if TYPE_CHECKING:
    from ..cost.floors import Floors


def flops(
    model: Model = "llava-ov-7b",
    frames: Frames = 32,
    k: K = 0.7,
    p: P = 0.7,
    steps: Annotated[int, typer.Option("--steps", help="Decode steps, R of Eq. 8.")] = 100,
    budget_frames: Annotated[
        int | None,
        typer.Option(
            "--budget-frames", help="Plan: frames that the cost of so many full ones allows."
        ),
    ] = None,
    multiple: Annotated[
        int, typer.Option("--multiple", help="The planned frame count is a multiple of this.")
    ] = 4,
    as_json: AsJson = False,
) -> None:
    """FLOPs of a video without and with compression: the paper's Eq. 8, and the true count."""
    from ..core.errors import DyCokeError
    from ..cost import flops as count
    from ..cost.dims import preset

    config = dycoke_config(k=k, p=p)
    dims = preset(model)
    if frames < 1 or steps < 1:
        raise DyCokeError(
            f"--frames {frames} --steps {steps} is not allowed; allowed: integers >= 1"
        )
    per_frame = dims.vision.tokens_per_frame
    report: dict[str, Any] = {"model": model, "frames": frames, "k": config.k, "p": config.p}
    report["steps"] = steps
    report["retained_ratio"] = count.retained_ratio(config.k, config.p)
    for name, rate_k, rate_p in (("full", 0.0, 0.0), ("dycoke", config.k, config.p)):
        paper = count.paper_video_flops(dims.llm, frames, rate_k, rate_p, steps, per_frame)
        visual = dims.visual_tokens(frames, config.with_changes(k=rate_k))
        report[name] = {
            "visual_tokens": visual,
            "paper_prefill_tflops": paper.prefill / 1e12,
            "paper_decode_tflops": paper.decode / 1e12,
            "paper_total_tflops": paper.total / 1e12,
            "true_vision_tflops": count.true_vision_flops(dims, frames) / 1e12,
            "true_prefill_tflops": count.true_prefill_flops(dims.llm, visual) / 1e12,
            "kv_bytes": visual * dims.llm.kv_bytes_per_token(),
        }
    if budget_frames is not None:
        planned = count.frames_for_budget(
            dims.llm, budget_frames, config.k, config.p, steps, per_frame, multiple
        )
        report["planned_frames"] = planned
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return

    figures = (
        ("visual tokens in the prompt", "visual_tokens", "{:,.0f}", 1),
        ("Eq. 8 prefill, TFLOPs", "paper_prefill_tflops", "{:.3f}", 1),
        (f"Eq. 8 decode of {steps} tokens, TFLOPs", "paper_decode_tflops", "{:.3f}", 1),
        ("Eq. 8 total, TFLOPs", "paper_total_tflops", "{:.3f}", 1),
        ("true vision encoder, TFLOPs", "true_vision_tflops", "{:.1f}", 1),
        ("true prefill, TFLOPs", "true_prefill_tflops", "{:.1f}", 1),
        ("KV cache of the visual tokens, MB", "kv_bytes", "{:.1f}", 1e6),
    )
    rows = [
        (label, *(style.format(report[s][key] / unit) for s in ("full", "dycoke")))
        for label, key, style, unit in figures
    ]
    title = f"{model}, {frames} frames, K={config.k} P={config.p}"
    print_table(title, ("", "full", "DyCoke"), rows)
    typer.echo(f"visual tokens attended to in decoding: {report['retained_ratio']:.2%}")
    if budget_frames is not None:
        typer.echo(f"the budget of {budget_frames} full frames allows {planned} frames")


def floors(
    model: Model = "llava-ov-7b",
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="GPU from the table; default h200.")
    ] = None,
    bandwidth: Bandwidth = None,
    tflops: Tflops = None,
    frames: Frames = 32,
    k: K = 0.7,
    l: L = 3,
    p: P = 0.7,
    batch: Annotated[int, typer.Option("--batch", help="Sequences decoded together.")] = 1,
    text: Annotated[int, typer.Option("--text", help="Text tokens in the prompt.")] = 64,
    generated: Annotated[
        int, typer.Option("--generated", help="Generated tokens in context, on average.")
    ] = 64,
    tokens_per_block: Annotated[int, typer.Option("--tokens-per-block")] = 64,
    gpus: Annotated[int, typer.Option("--gpus", help="GPUs that share the model.")] = 1,
    max_batch: Annotated[
        int | None,
        typer.Option("--max-batch", help="That an engine is built for; default: the batch."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Least time per stage on a GPU: without compression, with TTM, with TTM and pruning."""
    from ..cost.dims import preset
    from ..cost.floors import Workload, compare_floors, compared_configs, prompt_tables

    dims = preset(model)
    chosen = device(gpu, bandwidth, tflops)
    config = dycoke_config(k=k, l=l, p=p)
    # The span starts behind the chat template's 14 tokens, unless there is less text.
    workload = Workload(frames, batch, text, generated, min(14, text), tokens_per_block, gpus)
    settings = compare_floors(dims, chosen, config, workload)
    slots = batch if max_batch is None else max_batch
    tables = [
        prompt_tables(dims, chosen, compared, workload, slots=slots)
        for compared in compared_configs(config)
    ]
    if as_json:
        report = {
            "model": model,
            "gpu": asdict(chosen),
            "config": config.to_dict(),
            "workload": asdict(workload),
            "settings": [
                {**_as_dict(setting), "prompt_tables": asdict(table)}
                for setting, table in zip(settings, tables, strict=True)
            ],
        }
        typer.echo(json.dumps(report, indent=2))
        return

    title = f"{model} on {chosen.name}, {frames} frames, batch {batch}: floors in ms"
    firsts = (f"{s.time_to_first_token * 1e3:.1f}" for s in settings)
    fills = (f"{fill.seconds * 1e3:.3f}" for fill in tables)
    rows = [
        ("visual tokens", *(f"{s.visual_tokens:,}" for s in settings)),
        ("attended by layers >= L", *(f"{s.attended_tokens:,}" for s in settings)),
        ("KV per sequence, MB", *(f"{s.kv_bytes / 1e6:.0f}" for s in settings)),
        *(
            (stages[0].stage, *(f"{f.seconds * 1e3:.3f} [dim]{f.bound}[/]" for f in stages))
            for stages in zip(*(s.stages for s in settings), strict=True)
        ),
        ("time to first token", *firsts),
        (f"prompt tables per step, TensorRT-LLM built for {slots}", *fills),
        ("tokens/s", *(f"{batch / s.time_per_token:,.0f}" for s in settings)),
    ]
    print_table(title, ("", *(setting.setting for setting in settings)), rows)
    budget = settings[1].time_per_token - settings[2].time_per_token
    typer.echo(f"scoring and selection pay off below {budget * 1e6:.0f} us per step")
    typer.echo(f"source: {chosen.source}")


def device(name: str | None, bandwidth: float | None, tflops: float | None) -> Any:
    """A GPU of the table, or the two figures; raises DyCokeError for half of either."""
    from ..core.errors import DyCokeError
    from ..cost.gpus import Gpu, gpu

    if bandwidth is None and tflops is None:
        return gpu(name or "h200")
    if bandwidth is None or tflops is None or name is not None:
        raise DyCokeError("give either --gpu, or both --bandwidth and --flops")
    if not (0 < bandwidth < float("inf") and 0 < tflops < float("inf")):
        raise DyCokeError(
            f"--bandwidth {bandwidth} --flops {tflops} is not allowed; allowed: numbers > 0"
        )
    return Gpu("given", 0, 0.0, bandwidth * 1e9, tflops * 1e12, "--bandwidth and --flops")


def _as_dict(setting: Floors) -> dict[str, Any]:
    return {
        **asdict(setting),
        "time_to_first_token": setting.time_to_first_token,
        "time_per_token": setting.time_per_token,
    }
