"""`dycoke build`: a bundle's engines for one target, or with --dry-run the plan of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AsJson, refuse_idle
from .tables import print_table


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
    from ..engines.targets import find_target

    options: dict[str, Any] = {
        "strip_weights": strip_weights or None,
        "dry_run": dry_run or None,
        "tokens_per_block": tokens_per_block,
        "max_batch": max_batch,
        "kv_tokens": kv_tokens,
        "kv_fraction": kv_fraction,
        "model": model,
        "tp": tp,
        "max_frames": max_frames,
        "profile": profile,
        "plugin_interface": plugin_interface,
        "plugin": plugin,
    }
    given = {name: value for name, value in options.items() if value is not None}
    names = target or []
    chosen = find_target(names, vision, given)
    if (bundle is None) == (model is None):
        raise DyCokeError("give BUNDLE, or with --dry-run --model NAME instead of it")
    if not dry_run:
        refuse_idle("without --dry-run", json=as_json)
    outcome = chosen.build(bundle, names, **given)
    if isinstance(outcome, str):
        typer.echo(outcome)
    elif as_json:
        typer.echo(json.dumps(outcome.json(), indent=2))
    else:
        for table in outcome.tables():
            with_head = bool(table.columns)
            print_table(table.title, table.columns, table.rows, text=0, show_header=with_head)
