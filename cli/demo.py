"""`dycoke demo`: the whole product once, on the model and the clips that come with it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..core.extras import require
from .options import Frames

# What `export` takes, but for the P at which the small model answers all of its clips.
P, TOKENS_PER_BLOCK = 0.5, 16


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The bundle; one that is there is replaced.")
    ] = Path("build/demo"),
    frames: Frames = 16,
) -> None:
    """Export, verify, build and serve the small model, and ask it about its sample clips."""
    require("onnx", "onnxscript", "onnxruntime", "polygraphy", "transformers", extra="verify")
    require("tritonclient", extra="server")
    from rich.console import Console
    from rich.table import Table

    from ..core.config import DyCokeConfig
    from ..core.errors import DyCokeError
    from ..demo import CLIPS_DIR, MODEL_DIR
    from ..engines.cpu import build_cpu
    from ..export.bundle import export_bundle
    from ..runtime.client import ask_server
    from ..triton_repo.bundle_server import serving_bundle
    from ..triton_repo.tritonserver import find_tritonserver
    from ..verify.run import verify_bundle

    tritonserver = find_tritonserver()
    with _stage("export") as note:
        config = DyCokeConfig.tuned().with_changes(p=P)
        manifest = export_bundle(MODEL_DIR, output, config, dtype="float32", replace=True)
        manifest.visual_tokens(frames)  # refuses a wrong number before the long stages
        note(f"{output}, {sum(part.size for part in manifest.parts.values()) / 1e6:.1f} MB")
    with _stage("verify") as note:
        checks = list(verify_bundle(output, MODEL_DIR))
        failed = [check.stage for check in checks if not check.passed]
        if failed:
            raise DyCokeError(
                f"{output}: {', '.join(failed)} differ from the source; run: "
                f"dycoke verify {output} --source {MODEL_DIR}"
            )
        note(f"{len(checks)} checks against transformers passed")
    with _stage("build") as note:
        record = build_cpu(
            output, kv_tokens=16_384, tokens_per_block=TOKENS_PER_BLOCK, max_batch=16
        )
        note(str(record))
    clips = json.loads((CLIPS_DIR / "clips.json").read_text())
    table = Table("question", "answer", "truth")
    wrong, slowest = 0, 0.0
    begun = time.perf_counter()
    with serving_bundle(output, tritonserver=tritonserver) as server:
        _line("serve", begun, f"tritonserver {tritonserver.version} at {server.grpc}")
        with _stage("ask") as note:
            for clip in clips:
                video = CLIPS_DIR / clip["file"]
                answer = ask_server(server.grpc, clip["question"], video=video, frames=frames)
                right = answer.text == clip["answer"]
                wrong += not right
                slowest = max(slowest, answer.time_to_first_token)
                colour = "green" if right else "bold red"
                table.add_row(clip["question"], f"[{colour}]{answer.text}[/]", clip["answer"])
            note(
                f"{len(clips)} clips over gRPC, {len(clips) - wrong} answers right, first "
                f"token after at most {slowest * 1e3:.0f} ms, visual tokens "
                f"{answer.visual_tokens_before} -> {answer.visual_tokens}"
            )
        begun = time.perf_counter()
    _line("stop", begun, "the server ended, nothing is left running")
    Console().print(table)
    if wrong:
        raise typer.Exit(1)
    typer.echo(
        f"next: dycoke serve {output}, and in another terminal: dycoke ask --server "
        f'127.0.0.1:8001 --video {CLIPS_DIR / "describe.mp4"} "{clips[-1]["question"]}"'
    )


class _Note:
    """What a stage says of itself when it is done."""

    text = ""

    def __call__(self, text: str) -> None:
        self.text = text


@contextmanager
def _stage(name: str) -> Iterator[_Note]:
    """Prints one line with the stage's time when it is done."""
    begun, note = time.perf_counter(), _Note()
    yield note
    _line(name, begun, note.text)


def _line(name: str, begun: float, text: str) -> None:
    typer.echo(f"{name:<7} {time.perf_counter() - begun:5.1f} s  {text}")
