"""`dycoke export`, `verify`, `build`, `ask`: the life of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AsJson, dycoke_config, require

Bundle = Annotated[Path, typer.Argument(help="Bundle directory.", show_default=False)]


def export(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle to write.")],
    k: Annotated[float, typer.Option("--k", help="TTM pruning rate K, 0 <= K < 1.")] = 0.7,
    l: Annotated[int, typer.Option("--l", help="Layers >= L prune in decoding.")] = 3,
    p: Annotated[float, typer.Option("--p", help="KV pruning rate P, 0 <= P < 1.")] = 0.7,
    ttm: Annotated[str, typer.Option("--ttm", help="paper or off.")] = "paper",
    gate: Annotated[str, typer.Option("--gate", help="reuse, full, always or once.")] = "reuse",
    block_reduce: Annotated[str, typer.Option("--block-reduce", help="sum or max.")] = "sum",
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32, float16 or bfloat16.")
    ] = "bfloat16",
    tp: Annotated[int, typer.Option("--tp", help="Ranks of the LLM (tensor parallelism).")] = 1,
    max_frames: Annotated[int, typer.Option("--max-frames", help="Most frames per video.")] = 64,
    vision_tower: Annotated[
        Path | None,
        typer.Option("--vision-tower", help="SigLIP directory, if the checkpoint lacks it."),
    ] = None,
    kernel_target: Annotated[
        str,
        typer.Option("--kernel-target", help="Kernel images for these GPUs: sm_90,ptx; all; none."),
    ] = "all",
    force: Annotated[bool, typer.Option("--force", help="Replace an old bundle.")] = False,
) -> None:
    """Turn a LLaVA-OneVision checkpoint into a bundle: graph, LLM, kernel images, tokenizer."""
    require("onnx", "transformers", extra="export")
    targets = () if kernel_target == "none" else tuple(kernel_target.split(","))
    if targets:
        require("triton", extra="export")
    from ..export.bundle import export_bundle

    config = dycoke_config(k=k, l=l, p=p, ttm=ttm, gate=gate, block_reduce=block_reduce)
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
    typer.echo(f"next: dycoke verify {output} --source {model}")


def verify(
    bundle: Bundle,
    source: Annotated[
        Path | None, typer.Option("--source", help="The checkpoint it was exported from.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every byte of a bundle, and with --source its numbers against the source model."""
    if source is not None:
        require("onnx", "onnxruntime", "polygraphy", "transformers", extra="verify")
    from rich.console import Console
    from rich.table import Table

    from ..verify.run import verify_bundle

    checks = list(verify_bundle(bundle, source))
    failed = [check for check in checks if not check.passed]
    if as_json:
        typer.echo(json.dumps([check._asdict() for check in checks], indent=2))
    else:
        table = Table(title=f"{bundle}", title_justify="left")
        for column in ("stage", "result", "measured", "bound", ""):
            table.add_column(column)
        for check in checks:
            result = "[green]pass[/]" if check.passed else "[bold red]FAIL[/]"
            figures = (f"{check.measured:.3g}", f"{check.bound:.3g}")
            table.add_row(check.stage, result, *figures, check.unit)
        Console().print(table)
        if source is None:
            typer.echo("files only; add --source MODEL_DIR to compare numbers with the source")
    if failed:
        raise typer.Exit(1)


def build(
    bundle: Bundle,
    target: Annotated[str, typer.Option("--target", help="Only: cpu.")],
    kv_tokens: Annotated[
        int, typer.Option("--kv-tokens", help="Capacity of the KV pool in tokens.")
    ] = 16_384,
    tokens_per_block: Annotated[
        int, typer.Option("--tokens-per-block", help="Tokens of a KV block.")
    ] = 16,
    max_batch: Annotated[int, typer.Option("--max-batch", help="Sequences at once.")] = 16,
) -> None:
    """Build a bundle's engines for one target; on a CPU: load and try it, and write the record."""
    from ..core.errors import DyCokeError

    if target != "cpu":
        raise DyCokeError(f"unknown target {target!r}; allowed: cpu")
    require("onnxruntime", extra="cpu")
    from ..engines.cpu import build_cpu

    path = build_cpu(
        bundle, kv_tokens=kv_tokens, tokens_per_block=tokens_per_block, max_batch=max_batch
    )
    typer.echo(f"{path} written")


def ask(
    bundle: Bundle,
    question: Annotated[str, typer.Argument(help="The question.", show_default=False)],
    video: Annotated[Path | None, typer.Option("--video", help="Video file.")] = None,
    frames: Annotated[
        int, typer.Option("--frames", help="Frames sampled from the video, a multiple of 4.")
    ] = 16,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", help="1 is greedy, 0 takes all tokens.")] = 1,
    top_p: Annotated[float, typer.Option("--top-p")] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", help="For sampling.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="Stop word; repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a question about a video, in this process."""
    require("onnxruntime", extra="cpu")
    from ..core.errors import DyCokeError
    from ..runtime.native.sampling import Sampling
    from ..runtime.pipeline import Pipeline

    sampling = Sampling(temperature, top_k, top_p, seed)
    if sampling.greedy and (temperature != 1 or top_p != 1 or seed is not None):
        raise DyCokeError(
            "--temperature, --top-p and --seed have no effect on greedy answers; add --top-k 0"
        )
    pipeline = Pipeline.from_record(bundle)

    def show(text: str) -> None:
        if not as_json:
            typer.echo(text, nl=False)

    clip = None if video is None else pipeline.read(video, frames)
    answer = pipeline.ask(
        clip, question, max_tokens=max_tokens, sampling=sampling, stop=stop, on_text=show
    )
    report: dict[str, Any] = {
        "text": answer.text,
        "finish": answer.finish,
        "output_tokens": len(answer.tokens),
        "input_tokens": answer.prompt_tokens,
        "visual_tokens_before_ttm": answer.visual_tokens_before,
        "visual_tokens": answer.visual_tokens,
        "time_to_first_token": answer.time_to_first_token,
        "tokens_per_second": answer.tokens_per_second,
    }
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    typer.echo(
        f"\n[first token {answer.time_to_first_token * 1e3:.0f} ms, {answer.tokens_per_second:.1f} "
        f"tokens/s, visual tokens {answer.visual_tokens_before} -> {answer.visual_tokens}]",
        err=True,
    )
