"""Entry point: collects the commands and turns user errors into one line."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.text import Text

from . import (
    ask,
    bench,
    build,
    bundles,
    cost,
    demo,
    doctor,
    evaluate,
    kernels,
    plugin,
    profile,
    repo,
    serve,
)

app = typer.Typer(
    help="Deploy LLaVA-OneVision video LLMs with DyCoke token compression.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("export")(bundles.export)
app.command("verify")(bundles.verify)
app.command("build")(build.build)
app.command("doctor")(doctor.doctor)
app.command("kernels")(kernels.kernels)
app.add_typer(plugin.app, name="plugin")
app.command("ask")(ask.ask)
app.command("repo")(repo.repo)
app.command("serve")(serve.serve)
app.command("demo")(demo.demo)
app.command("profile")(profile.profile)
app.command("bench")(bench.bench)
app.command("flops")(cost.flops)
app.command("floors")(cost.floors)
app.command("eval")(evaluate.evaluate)


@app.callback()
def _root() -> None:
    """Keeps `dycoke COMMAND` the only form, however many commands there are."""


def run() -> None:
    """Runs the command line; a user's mistake ends in one line and exit status 2."""
    try:
        app(prog_name="dycoke")
    except ValueError as error:
        # Imported here: core/ is light, but its package should not load for `dycoke --help`.
        from ..core.errors import DyCokeError

        if not isinstance(error, DyCokeError):
            raise
        # Not as markup: messages hold brackets, such as 'dycoke-trt[profile]'.
        message = Text.assemble(("error:", "bold red"), f" {error}")
        Console(stderr=True, highlight=False).print(message, soft_wrap=True)
        sys.exit(2)
