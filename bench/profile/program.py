"""The program that is profiled: warm-up requests, then measured ones, one after the other.

    python -m dycoke_trt.bench.profile.program PLAN.json

Under nsys, it records from the beginning of the range `steady state` to its end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...core.errors import DyCokeError
from ...runtime.answer import Answer
from ...runtime.stages import REQUEST, Stage, report_to
from .nsys import STEADY


@dataclass(frozen=True)
class Plan:
    """mode: server starts one on the bundle. source torch: this process writes `trace` itself.

    warmup, requests: how many; answers: the file that gets what came back, or {"error": why not}.
    """

    bundle: str
    video: str
    question: str
    answers: str
    mode: Literal["offline", "server"] = "offline"
    source: Literal["nsys", "torch"] = "nsys"
    trace: str = ""
    device: str = "cpu"
    frames: int = 16
    max_tokens: int = 64
    warmup: int = 2
    requests: int = 5


Ask = Callable[[], Answer]  # the question once


def run(plan: Plan) -> None:
    """Raises DyCokeError for what a user can mend."""
    with _offline(plan) if plan.mode == "offline" else _server(plan) as ask:
        with report_to(None) if plan.source == "torch" else nullcontext():
            for _ in range(plan.warmup):
                ask()
        answers = []
        with _torch_trace(plan) if plan.source == "torch" else nullcontext(), Stage(STEADY):
            for _ in range(plan.requests):
                with REQUEST:
                    answer = ask()
                answers.append(_row(answer))
    Path(plan.answers).write_text(json.dumps(answers))


@contextmanager
def _offline(plan: Plan) -> Iterator[Ask]:
    from ...runtime.pipeline import Pipeline

    bundle = Path(plan.bundle)
    # Traces of steps are off: reading them back would be part of what is measured.
    pipeline = Pipeline.from_record(bundle, plan.device, keep_steps=False)

    def ask() -> Answer:
        frames = pipeline.read(Path(plan.video), plan.frames)
        return pipeline.ask(frames, plan.question, max_tokens=plan.max_tokens)

    yield ask


@contextmanager
def _server(plan: Plan) -> Iterator[Ask]:
    from ...runtime.client import ask_server
    from ...triton_repo.bundle_server import serving_bundle

    log = Path(plan.answers).with_name("tritonserver.log")
    with serving_bundle(Path(plan.bundle), log_file=log) as server:
        yield lambda: ask_server(
            server.grpc,
            plan.question,
            video=Path(plan.video),
            frames=plan.frames,
            max_tokens=plan.max_tokens,
        )
    log.unlink()  # of use only where something failed


def _row(answer: Answer) -> dict[str, Any]:
    return {
        "text": answer.text,
        "tokens": answer.output_tokens,
        "finish": getattr(answer, "finish", None),  # Triton's protocol has no field for it
        "prompt_tokens": answer.input_tokens,
        "visual_tokens": answer.visual_tokens,
        "time_to_first_token": answer.time_to_first_token,
        "total_time": answer.total_time,
    }


class TorchSink:
    """Ranges as annotations of torch.profiler. What ends in another thread is not closed there."""

    def __init__(self) -> None:
        self._open: list[Any] = []

    def push(self, name: str) -> None:
        self._open.append(self.begin(name))

    def pop(self) -> None:
        self.end(self._open.pop())

    def begin(self, name: str) -> Any:
        from torch.profiler import record_function

        annotation: Any = record_function(name)
        annotation.__enter__()
        return annotation

    def end(self, token: Any) -> None:
        token.__exit__(None, None, None)


@contextmanager
def _torch_trace(plan: Plan) -> Iterator[None]:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if plan.device != "cpu":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded, report_to(TorchSink()):
        yield
    recorded.export_chrome_trace(plan.trace)


def main() -> None:
    plan = Plan(**json.loads(Path(sys.argv[1]).read_text()))
    try:
        run(plan)
    except Exception as error:
        # Told by file: what a profiler prints and returns does not say whose failure it is.
        known = isinstance(error, DyCokeError)
        why = str(error) if known else f"{type(error).__name__}: {error}"
        Path(plan.answers).write_text(json.dumps({"error": why}))
        if not known:
            raise
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
