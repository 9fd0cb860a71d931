"""`dycoke eval`: accuracy on the shapes suite, for full tokens and for any configuration."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.extras import require
from .options import AsJson, Gate, K, L, P, dycoke_config
from .tables import print_table

if TYPE_CHECKING:
    from ..core.config import DyCokeConfig
    from ..eval.study import Setting


def evaluate(
    suite: Annotated[str, typer.Option("--suite", help="Only: shapes.")] = "shapes",
    samples: Annotated[int, typer.Option("--samples", help="Held-out samples.")] = 1000,
    seed: Annotated[
        int, typer.Option("--seed", help="First held-out sample; others give other videos.")
    ] = 0,
    k: K = 0.0,
    l: L = 3,
    p: P = 0.0,
    ttm: Annotated[str, typer.Option("--ttm", help="paper, reference, random or off.")] = "paper",
    gate: Gate = "reuse",
    memory: Annotated[
        float, typer.Option("--memory", help="Weight of the past in averaged scores, 0 <= M < 1.")
    ] = 0.0,
    order: Annotated[
        str, typer.Option("--order", help="How tokens lie in blocks: raster or importance.")
    ] = "raster",
    study: Annotated[
        str, typer.Option("--study", help="Many settings: merging, selection or candidates.")
    ] = "",
    model: Annotated[
        Path | None, typer.Option("--model", help="Model directory; default: the demo model.")
    ] = None,
    backend: Annotated[
        str,
        typer.Option("--backend", help="oracle: plain and slow; native: paged, as it is served."),
    ] = "oracle",
    tokens_per_block: Annotated[
        int | None,
        typer.Option(
            "--tokens-per-block", help="Blocks are selected; default: tokens, native: 16."
        ),
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
    from ..eval.study import STUDIES, Setting

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
    block = tokens_per_block or (16 if native else None)
    config = dycoke_config(
        k=k, l=l, p=p, ttm=ttm, gate=gate, memory=memory, order=order,
        granularity="token" if block is None else "block",
    )  # fmt: skip
    given = {
        "--l": l != 3, "--gate": gate != "reuse", "--memory": memory != 0,
        "--order": order != "raster", "--tokens-per-block": tokens_per_block is not None,
    }  # fmt: skip
    idle = [option for option, is_given in given.items() if is_given and p == 0]
    if idle and not study:
        raise DyCokeError(f"{idle[0]} has no effect without --p")
    if ttm != "paper" and k == 0 and not study:
        raise DyCokeError("--ttm has no effect without --k")
    if study:
        own = [option for option, value in given.items() if value]
        own += [name for name, value in (("--k", k), ("--p", p)) if value > 0]
        own += ["--ttm"] if ttm != "paper" else []
        if own:
            raise DyCokeError(f"--study has its own settings; leave out {own[0]}")
        if study not in STUDIES:
            raise DyCokeError(f"unknown study {study!r}; allowed: {', '.join(STUDIES)}")
        if native:
            raise DyCokeError("--study compares settings of the oracle; leave out --backend native")
    report = _measure(
        study, Setting(config, block), samples, seed, model, workers, native, quiet=as_json
    )
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _show(report)


def _settings(config: DyCokeConfig, block: int | None) -> dict[str, Setting]:
    """Full tokens, and one setting beside them if it is another."""
    from ..core.config import DyCokeConfig
    from ..eval.study import Setting

    settings = {"full tokens": Setting(DyCokeConfig.off())}
    if config.p > 0 or (config.k > 0 and config.ttm != "off"):
        named = str(config) if block is None or config.p == 0 else f"{config}, of {block} tokens"
        settings[named] = Setting(config, block)
    return settings


def _measure(
    study: str,
    setting: Setting,
    samples: int,
    seed: int,
    model: Path | None,
    workers: int,
    native: bool,
    *,
    quiet: bool,
) -> dict[str, Any]:
    """Runs the suite; the figures of a single setting stand at the top level of the report."""
    import torch
    from rich.console import Console
    from rich.progress import track

    from ..demo import MODEL_DIR
    from ..eval.native import NativeAnswerer
    from ..eval.report import difference, summarise
    from ..eval.shapes import Answerer, run_suite
    from ..eval.study import STUDIES

    torch.set_num_threads(1)  # as in the workers: the tensors are small, threads only wait
    folder = model or MODEL_DIR
    if study:
        settings, bases = STUDIES[study].settings(Answerer(folder).span()), STUDIES[study].bases
    else:
        settings, bases = _settings(*setting), ("full tokens",)
    for each in settings.values():
        each.config.check_layers(_layers(folder))
    load: Callable[[Path], Answerer] = Answerer
    if native:
        assert setting.tokens_per_block is not None
        load = partial(NativeAnswerer, tokens_per_block=setting.tokens_per_block)
    results = run_suite(folder, samples, seed, list(settings.values()), workers, load)
    rows = list(
        track(results, "samples", total=samples, console=Console(stderr=True), disable=quiet)
    )
    columns = dict(zip(settings, map(list, zip(*rows, strict=True)), strict=True))
    figures = {}
    for name, outcomes in columns.items():
        figures[name] = summarise(settings[name], outcomes)
        figures[name]["difference"] = {
            base: difference(outcomes, columns[base]) for base in bases if base != name
        }
    return {
        "suite": "shapes",
        "samples": samples,
        "seed": seed,
        "backend": "native" if native else "oracle",
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
    from ..demo.shapes import SHORT_TASKS

    settings: dict[str, dict[str, Any]] = report["settings"]
    cells = {name: _cells(figures) for name, figures in settings.items()}
    title = (
        f"shapes, {report['samples']} held-out samples from {report['seed']}, "
        f"{report['backend']}: accuracy in %"
    )
    labels = list({label: None for row in cells.values() for label in row})
    if len(settings) <= 2:
        rows = [(label, *(cells[name].get(label, "") for name in settings)) for label in labels]
        print_table(title, ("", *settings), rows, text=len(settings) + 1)
    else:
        # Intervals of single tasks would not fit beside each other.
        shown = [label for label in labels if label.split(" ")[0] not in SHORT_TASKS]
        columns = ("", *(label.replace(" (95 %)", "") for label in shown))
        rows = [(name, *(cells[name].get(label, "") for label in shown)) for name in settings]
        print_table(title, columns, rows, text=len(columns), width=240)


def _cells(figures: dict[str, Any]) -> dict[str, str]:
    """Label -> text of one setting's figures."""
    from ..eval.report import SHORT

    steps, mass = figures["steps"], figures["attention_mass_kept"]

    def share(count: int) -> str:
        return f"{100 * count / steps:.0f}%" if steps else ""

    differences = {
        f"{task} - {base}": _interval(change.get(label))
        for base, change in figures["difference"].items()
        for task, label in (("short", SHORT), ("describe", "describe"))
    }
    attended, entered = figures["attended_per_pruned_step"], figures["entered_of_attended"]
    return {
        **{f"{task} (95 %)": _interval(got) for task, got in figures["tasks"].items()},
        "short (95 %)": _interval(figures[SHORT]),
        **differences,
        "visual tokens": str(figures["visual_tokens"]),
        "tokens attended": "" if attended is None else f"{attended:.0f}",
        "entered": "" if entered is None else f"{100 * entered:.0f}%",
        "steps pruned": share(figures["steps_pruned"]),
        "gate hits": share(figures["gate_hits"]),
        "mass kept": "" if mass is None else f"{100 * mass:.0f}%",
    }


def _interval(estimate: dict[str, float] | None) -> str:
    if estimate is None:
        return ""
    value, low, high = (100 * estimate[key] for key in ("accuracy", "low", "high"))
    return f"{value:.1f} ({low:.1f}..{high:.1f})"
