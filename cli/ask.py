"""`dycoke ask`: a question about a video, to a bundle in this process or to a running server."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.extras import require
from ..runtime.video.limits import VideoLimits
from .limits import limit_options
from .options import AsJson, MaxTokens, Video, refuse_idle

if TYPE_CHECKING:
    from ..runtime.answer import Answer

_FORMS = "give BUNDLE and QUESTION, or --server HOST:PORT and QUESTION (in quotes)"


@limit_options(VideoLimits, "videos")
def ask(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BUNDLE] QUESTION",
            help="Bundle directory (not with --server) and the question.",
            show_default=False,
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server", metavar="HOST:PORT", help="gRPC service of `dycoke serve`; no BUNDLE then."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="What was built: cpu (default), or cuda for the GPU."),
    ] = None,
    vision: Annotated[
        str | None,
        typer.Option("--vision", help="With --target cuda: native (default), or rtx."),
    ] = None,
    video: Video = None,
    frames: Annotated[
        int | None,
        typer.Option("--frames", help="Sampled from the video, a multiple of 4; default 16."),
    ] = None,
    max_tokens: MaxTokens = 256,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", help="1 is greedy, 0 takes all tokens.")] = 1,
    top_p: Annotated[float, typer.Option("--top-p")] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", help="For sampling.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="Stop word; repeatable.")] = None,
    as_json: AsJson = False,
    *,
    videos: VideoLimits,
) -> None:
    """Ask a question about a video: in this process, or with --server of a running server."""
    from ..core.errors import DyCokeError
    from ..runtime.protocol import DEFAULT_FRAMES

    bundle, question = _bundle_and_question(words or [], server)
    if server is not None and videos != VideoLimits():
        raise DyCokeError("--max-video-... has no effect with --server; give it to dycoke serve")
    if server is not None:
        refuse_idle("with --server: it has its own", target=target, vision=vision)
    if video is None:
        refuse_idle("without --video", frames=frames)
    frames = DEFAULT_FRAMES if frames is None else frames
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "stop": stop or [],
        "on_text": (lambda _: None) if as_json else (lambda text: typer.echo(text, nl=False)),
    }
    sampling: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
    }
    if server is None:
        assert bundle is not None
        build = (bundle, target or "cpu", vision)
        answer: Answer = _ask_here(*build, question, video, frames, sampling, options, videos)
    else:
        answer = _ask_there(server, question, video, frames, sampling, options)
    if as_json:
        typer.echo(json.dumps(_report(answer), indent=2))
        return
    visual = (answer.visual_tokens_before, answer.visual_tokens)
    shown = "" if None in visual else f", visual tokens {visual[0]} -> {visual[1]}"
    typer.echo(
        f"\n[first token {answer.time_to_first_token * 1e3:.0f} ms, "
        f"{answer.tokens_per_second:.1f} tokens/s{shown}]",
        err=True,
    )


def _report(answer: Answer) -> dict[str, Any]:
    """finish, config and selection: of an answer in this process; request_id: of a server's."""
    from ..core.decisions import Decision

    own: dict[str, Any] = {
        name: getattr(answer, name) for name in ("finish", "request_id") if hasattr(answer, name)
    }
    ran: dict[str, Any] = {
        name: asdict(getattr(answer, name))
        for name in ("config", "selection")
        if hasattr(answer, name)
    }
    if counts := ran.get("selection"):
        counts["decisions"] = {d.label: counts["decisions"][d] for d in Decision}
    return {
        "text": answer.text,
        **own,
        "output_tokens": answer.output_tokens,
        "input_tokens": answer.input_tokens,
        "visual_tokens_before_ttm": answer.visual_tokens_before,
        "visual_tokens": answer.visual_tokens,
        "time_to_first_token": answer.time_to_first_token,
        "tokens_per_second": answer.tokens_per_second,
        **ran,
    }


def _bundle_and_question(words: list[str], server: str | None) -> tuple[Path | None, str]:
    from ..core.errors import DyCokeError

    if server is not None and len(words) == 2:
        raise DyCokeError(f"--server {server} has its own bundle; leave out {words[0]!r}")
    if len(words) != (2 if server is None else 1):
        raise DyCokeError(f"{len(words)} arguments; {_FORMS}")
    return (Path(words[0]), words[1]) if server is None else (None, words[0])


def _refuse_idle(temperature: float, top_k: int, top_p: float, seed: int | None) -> None:
    from ..core.errors import DyCokeError

    if temperature == 0 and (top_p != 1 or seed is not None):
        raise DyCokeError("--top-p and --seed have no effect on greedy answers (--temperature 0)")
    if top_k == 1 and (temperature not in (0, 1) or top_p != 1 or seed is not None):
        raise DyCokeError(
            "--temperature, --top-p and --seed have no effect on greedy answers; add --top-k 0"
        )


def _ask_here(
    bundle: Path,
    target: str,
    vision: str | None,
    question: str,
    video: Path | None,
    frames: int,
    sampling: dict[str, Any],
    options: dict[str, Any],
    videos: VideoLimits,
) -> Answer:
    from ..core.errors import DyCokeError
    from ..engines.targets import check_name
    from ..runtime.vision import NATIVE, RTX

    check_name(target)
    if vision not in (None, NATIVE) and (vision, target) != (RTX, "cuda"):
        raise DyCokeError(
            f"--vision {vision} does not go with --target {target}; allowed: {NATIVE}, and {RTX} "
            "with --target cuda"
        )
    if target == "cpu":
        require("onnxruntime", extra="cpu")
    from ..runtime.pipeline import Pipeline
    from ..runtime.sampling import Sampling

    wanted = Sampling(**sampling)
    _refuse_idle(**sampling)
    pipeline = Pipeline.from_record(bundle, target, keep_steps=False, vision=vision or NATIVE)
    clip = None if video is None else pipeline.read(video, frames, videos)
    return pipeline.ask(clip, question, sampling=wanted, **options)


def _ask_there(
    server: str,
    question: str,
    video: Path | None,
    frames: int,
    sampling: dict[str, Any],
    options: dict[str, Any],
) -> Answer:
    require("tritonclient", extra="client")
    from ..runtime.client import ask_server

    _refuse_idle(**sampling)
    try:
        return ask_server(server, question, video=video, frames=frames, **sampling, **options)
    except KeyboardInterrupt:
        typer.echo("\ncancelled", err=True)
        raise typer.Exit(130) from None
