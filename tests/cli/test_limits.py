"""Bounds of requests as options of `dycoke serve` and `dycoke repo`."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from pathlib import Path

import pytest
import typer
from dycoke_trt.cli.limits import limit_options
from dycoke_trt.cli.repo import repo
from dycoke_trt.cli.serve import serve
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.runtime.limits import RequestLimits
from dycoke_trt.runtime.video.limits import VideoLimits
from typer.testing import CliRunner

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.mark.parametrize("command", [serve, repo])
def test_every_bound_has_an_option_and_a_row_of_the_page(command: object) -> None:
    page = PAGE.read_text()
    parameters = inspect.signature(command).parameters  # type: ignore[arg-type]
    for bound in fields(RequestLimits):
        assert parameters[bound.name].default == bound.default
        assert f"`{RequestLimits.flag(bound.name)}`" in page
        assert f"{bound.default:,.0f}" in page or bound.default == 2  # two preprocessors
    for bound in fields(VideoLimits):
        assert parameters[VideoLimits.parameter(bound.name)].default == bound.default


def test_options_arrive_as_one_object() -> None:
    arrived = []
    app = typer.Typer()

    @app.command()
    @limit_options(RequestLimits, "requests")
    def command(name: str, *, requests: RequestLimits) -> None:
        arrived.append((name, requests))

    runner = CliRunner()
    options = ["--max-queue", "3", "--max-wait-seconds", "0.5"]
    assert runner.invoke(app, ["x", *options]).exit_code == 0
    assert runner.invoke(app, ["y"]).exit_code == 0
    wanted = replace(RequestLimits(), max_queue=3, max_wait_seconds=0.5)
    assert arrived == [("x", wanted), ("y", RequestLimits())]
    refused = runner.invoke(app, ["z", "--max-stop-words", "0"])
    assert isinstance(refused.exception, DyCokeError)
    assert "--max-stop-words 0 is not allowed" in str(refused.exception)


def test_two_kinds_of_bounds_beside_other_options() -> None:
    arrived = []
    app = typer.Typer()

    @app.command()
    @limit_options(VideoLimits, "videos")
    @limit_options(RequestLimits, "requests")
    def command(name: str, *, requests: RequestLimits, videos: VideoLimits) -> None:
        arrived.append((name, requests, videos))

    options = ["--max-video-seconds", "0.5", "--max-queue", "3"]
    assert CliRunner().invoke(app, ["x", *options]).exit_code == 0
    command("y", max_video_frames=8)
    assert arrived == [
        ("x", RequestLimits(max_queue=3), VideoLimits(max_seconds=0.5)),
        ("y", RequestLimits(), VideoLimits(max_frames=8)),
    ]
    refused = CliRunner().invoke(app, ["z", "--max-video-bytes", "0"])
    assert "--max-video-bytes 0 is not allowed" in str(refused.exception)


def test_parameters_of_a_model_come_back() -> None:
    limits = RequestLimits(max_tokens=7, max_answer_seconds=1.5, preprocessors=4)
    assert RequestLimits.from_parameters(limits.parameters() | {"bundle": "x"}) == limits
    assert RequestLimits.from_parameters({}) == RequestLimits()
    with pytest.raises(DyCokeError, match="max_tokens: 'many'"):
        RequestLimits.from_parameters({"max_tokens": "many"})
