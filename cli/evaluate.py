"""`dycoke eval`: accuracy on the shapes suite, for full tokens and for any configuration."""

from __future__ import annotations

import json
import platform
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.extras import require
from .options import AsJson, dycoke_config

if TYPE_CHECKING:
    from ..core.config import DyCokeConfig


def evaluate(
    suite: Annotated[str, typer.Option("--suite", help="Only: shapes.")] = "shapes",
    samples: Annotated[int, typer.Option("--samples", help="Held-out samples.")] = 1000,
    seed: Annotated[
        int, typer.Option("--seed", help="First held-out sample; others give other videos.")
    ] = 0,
    k: Annotated[float, typer.Option("--k", help="TTM pruning rate K, 0 <= K < 1.")] = 0.0,
    l: Annotated[int, typer.Option("--l", help="Layers >= L prune.")] = 3,
    p: Annotated[float, typer.Option("--p", help="KV pruning rate P, 0 <= P < 1.")] = 0.0,
    ttm: Annotated[str, typer.Option("--ttm", help="paper, reference, random or off.")] = "paper",
    gate: Annotated[str, typer.Option("--gate", help="reuse, full, always or once.")] = "reuse",
    study: Annotated[
        bool, typer.Option("--study", help="Every setting of the study instead of one.")
    ] = False,
    model: Annotated[
        Path | None, typer.Option("--model", help="Model directory; default: the demo model.")
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            "--backend", help="oracle: token granularity; native: paged, prunes blocks of tokens."
        ),
    ] = "oracle",
    tokens_per_block: Annotated[
        int | None,
        typer.Option("--tokens-per-block", help="Of the native backend; default: 16."),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", help="Processes.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Accuracy per task on held-out synthetic videos.

    Without --k and --p: full tokens. With either, full tokens are measured on the same samples too
    and the difference is given with its paired interval.
    """
    require("transformers", extra="demo")
    from ..core.errors import DyCokeError
    from ..demo.shapes import HELD_OUT_SEEDS

    if suite != "shapes":
        raise DyCokeError(f"unknown suite {suite!r}; allowed: shapes")
    most = len(HELD_OUT_SEEDS)
    if samples < 1 or workers < 1 or seed < 0 or seed + samples > most:
        raise DyCokeError(
            f"--samples {samples} --seed {seed} --workers {workers} is not allowed; allowed: "
            f"samples, workers >= 1, seed >= 0, seed + samples <= {most}"
        )
    if backend not in ("oracle", "native"):
        raise DyCokeError(f"unknown backend {backend!r}; allowed: oracle, native")
    native = backend == "native"
    if tokens_per_block is not None and not 1 <= tokens_per_block <= 128:
        raise DyCokeError(
            f"--tokens-per-block {tokens_per_block} is not allowed; allowed: 1 to 128"
        )
    granularity = "block" if native else "token"
    config = dycoke_config(k=k, l=l, p=p, ttm=ttm, gate=gate, granularity=granularity)
    idle = [
        option
        for option, given in (
            ("--l", l != 3),
            ("--gate", gate != "reuse"),
            ("--tokens-per-block", native and tokens_per_block is not None),
        )
        if given and p == 0
    ]
    idle += ["--ttm"] if ttm != "paper" and k == 0 else []
    if idle:
        raise DyCokeError(
            f"{idle[0]} has no effect without {'--k' if idle[0] == '--ttm' else '--p'}"
        )
    if tokens_per_block is not None and not native:
        raise DyCokeError("--tokens-per-block has no effect without --backend native")
    if study and (k > 0 or p > 0):
        raise DyCokeError("--study has its own settings; leave out --k and --p")
    if study and native:
        raise DyCokeError("--study compares settings of the oracle; leave out --backend native")
    block = (tokens_per_block or 16) if native else None
    settings = _settings(config, study)
    report = _measure(settings, samples, seed, model, workers, block, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _show(report)


def _settings(config: DyCokeConfig, study: bool) -> dict[str, DyCokeConfig]:
    from ..core.config import DyCokeConfig
    from ..eval.study import study as all_settings

    if study:
        return all_settings()
    off = DyCokeConfig.off()
    settings = {"full tokens": off}
    if config.p > 0 or (config.k > 0 and config.ttm != "off"):
        named = f"K={config.k} L={config.l} P={config.p} ttm {config.ttm}, gate {config.gate}"
        settings[named] = config
    return settings


def _measure(
    settings: dict[str, DyCokeConfig],
    samples: int,
    seed: int,
    model: Path | None,
    workers: int,
    block: int | None,
    *,
    quiet: bool,
) -> dict[str, Any]:
    """Runs the suite; the last setting's figures stand at the top level of the report.

    block: tokens per block of the native backend; None is the oracle.
    """
    import torch
    from rich.console import Console
    from rich.progress import track

    from ..demo import MODEL_DIR
    from ..eval.native import NativeAnswerer
    from ..eval.report import difference, summarise
    from ..eval.shapes import Answerer, run_suite

    torch.set_num_threads(1)  # as in the workers: the tensors are small, threads only wait
    folder = model or MODEL_DIR
    for config in settings.values():
        config.check_layers(_layers(folder))
    load = Answerer if block is None else partial(NativeAnswerer, tokens_per_block=block)
    results = run_suite(folder, samples, seed, list(settings.values()), workers, load)
    rows = list(
        track(results, "samples", total=samples, console=Console(stderr=True), disable=quiet)
    )
    columns = [list(column) for column in zip(*rows, strict=True)]
    figures = {}
    for (name, config), outcomes in zip(settings.items(), columns, strict=True):
        figures[name] = summarise(config, outcomes)
        if outcomes is not columns[0]:
            figures[name]["difference"] = difference(outcomes, columns[0])
    return {
        "suite": "shapes",
        "samples": samples,
        "seed": seed,
        "backend": "oracle" if block is None else "native",
        "tokens_per_block": block,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
        },
        # One setting's figures stand at the top too; a study has no single one.
        **(list(figures.values())[-1] if len(figures) <= 2 else {}),
        "settings": figures,
    }


def _layers(folder: Path) -> int:
    from ..demo.network import read_config

    return int(read_config(folder)["text_config"]["num_hidden_layers"])


def _show(report: dict[str, Any]) -> None:
    """One setting beside full tokens: a column each. The study: a row each, wide."""
    from rich.console import Console
    from rich.table import Table

    settings: dict[str, dict[str, Any]] = report["settings"]
    cells = {name: _cells(figures) for name, figures in settings.items()}
    table = Table(
        title=f"shapes, {report['samples']} held-out samples from {report['seed']}, "
        f"{report['backend']}: accuracy in %",
        title_justify="left",
    )
    labels = list(next(iter(cells.values())))
    if len(settings) <= 2:
        for name in ("", *settings):
            table.add_column(name)
        for label in labels:
            table.add_row(label, *(cells[name][label] for name in settings))
        Console().print(table)
    else:
        for label in ("", *labels):
            table.add_column(label.replace(" (95 %)", ""))
        for name in settings:
            # Intervals of single tasks would not fit beside each other.
            row = (c if "short" in la else c.split(" ")[0] for la, c in cells[name].items())
            table.add_row(name, *row)
        Console(width=200).print(table)


def _cells(figures: dict[str, Any]) -> dict[str, str]:
    """Label -> text of one setting's figures."""
    from ..eval.report import SHORT

    steps, mass = figures["steps"], figures["attention_mass_kept"]

    def share(count: int) -> str:
        return f"{100 * count / steps:.0f}%" if steps else ""

    difference = figures.get("difference", {})
    return {
        **{f"{task} (95 %)": _interval(got) for task, got in figures["tasks"].items()},
        "short (95 %)": _interval(figures[SHORT]),
        "short - full": _interval(difference.get(SHORT)),
        "describe - full": _interval(difference.get("describe")),
        "visual tokens": str(figures["visual_tokens"]),
        "steps pruned": share(figures["steps_pruned"]),
        "gate hits": share(figures["gate_hits"]),
        "mass kept": "" if mass is None else f"{100 * mass:.0f}%",
    }


def _interval(estimate: dict[str, float] | None) -> str:
    if estimate is None:
        return ""
    value, low, high = (100 * estimate[key] for key in ("accuracy", "low", "high"))
    return f"{value:.1f} ({low:.1f}..{high:.1f})"
