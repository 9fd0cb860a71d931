"""A bundle in one process: video and question in, answer out, through the native backend."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..bundle.files import open_bundle
from ..core.config import DyCokeConfig
from ..core.errors import DyCokeError
from .answer import Answer
from .detokenize import TextStream
from .native.load import limits_of, load_engine, native_record
from .prompt import PromptBuilder
from .request import Event, Request
from .resize import resize
from .sampling import Sampling
from .scheduler import EngineLimits
from .selection import SelectionCounts, StepTrace
from .stages import DECODE_VIDEO, DETOKENISE, PREPROCESS, VISION
from .video.limits import VideoLimits
from .video.read import read_video
from .vision import NATIVE, Vision, load_vision


@dataclass(frozen=True, kw_only=True)
class LocalAnswer(Answer):
    """What a pipeline answered, whose tokens are at hand.

    config: of what ran; selection: what it selected so far, other answers of the pipeline included.
    """

    tokens: list[int]
    finish: str
    steps: list[StepTrace]
    config: DyCokeConfig
    selection: SelectionCounts


class Pipeline:
    """Loads a bundle for a CPU, or with device="cuda" for a GPU, in the bundle's dtype there.

    kv_tokens: capacity of the KV pool; tokens_per_block: its block size. config: overrides the
    bundle's settings of dynamic pruning (l, p, gate, granularity, ...); TTM is in the graph.
    vision: what runs the vision step, NATIVE or on a GPU RTX (runtime/vision.py).
    keep_steps: answers carry a trace of their decode steps, which costs host work in each.
    """

    def __init__(
        self,
        bundle: Path,
        *,
        kv_tokens: int = 16_384,
        tokens_per_block: int = 16,
        config: DyCokeConfig | None = None,
        limits: EngineLimits | None = None,
        device: str = "cpu",
        keep_steps: bool = True,
        vision: str = NATIVE,
    ) -> None:
        self.manifest = open_bundle(bundle)
        baked = self.manifest.config
        self.config = config or baked
        if (self.config.k, self.config.ttm) != (baked.k, baked.ttm):
            raise DyCokeError(
                f"k={self.config.k}, ttm={self.config.ttm!r} asked for, the bundle's graph has "
                f"k={baked.k}, ttm={baked.ttm!r}; export again with the other values"
            )
        self.prompts = PromptBuilder(bundle, self.manifest)
        self.vision: Vision = load_vision(bundle, device, kind=vision)
        self._steps: dict[str, list[StepTrace]] = {}
        self.engine = load_engine(
            bundle,
            self.config,
            kv_tokens=kv_tokens,
            tokens_per_block=tokens_per_block,
            limits=limits,
            trace=self._keep_trace if keep_steps else None,
            device=device,
        )

    @classmethod
    def from_record(
        cls, bundle: Path, target: str = "cpu", *, keep_steps: bool = True, vision: str = NATIVE
    ) -> Pipeline:
        """The pipeline that `dycoke build --target cpu` or `cuda` recorded; raises what
        `native_record` does."""
        record = native_record(bundle, target)
        return cls(
            bundle,
            kv_tokens=record.kv_tokens,
            tokens_per_block=record.tokens_per_block,
            limits=limits_of(record),
            device=record.target,
            keep_steps=keep_steps,
            vision=vision,
        )

    def read(self, video: Path, num_frames: int, limits: VideoLimits | None = None) -> Tensor:
        """Samples a video file, after a wrong number of frames is refused: uint8 [F, S, S, 3]."""
        self.manifest.visual_tokens(num_frames)
        with DECODE_VIDEO:
            size = self.manifest.vision.image_size
            return read_video(video, num_frames, size=size, limits=limits)

    def embed_video(self, frames: Tensor) -> Tensor:
        """uint8 [F, H, W, 3] -> visual embeddings [V, hidden]."""
        self.manifest.visual_tokens(len(frames))  # refuses a wrong number of frames
        with PREPROCESS:
            resized = resize(frames, self.manifest.vision.image_size)[None]
        with VISION:
            return self.vision(resized)[0]

    def ask(
        self,
        frames: Tensor | None,
        question: str,
        *,
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: list[str] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> LocalAnswer:
        """Runs one request to its end. frames: uint8 [F, H, W, 3], or None for text alone."""
        begun = time.perf_counter()
        visual = 0 if frames is None else self.manifest.visual_tokens(len(frames))
        with PREPROCESS:
            prompt = self.prompts.build(question, visual)
        embeddings = None if frames is None else self.embed_video(frames)
        stream = TextStream(self.prompts.tokenizer, stop or [])
        pieces: list[str] = []
        tokens: list[int] = []
        finish, first = "", [0.0]
        request_id = uuid.uuid4().hex

        def on_event(event: Event) -> None:
            nonlocal finish
            if event.tokens and not tokens:
                first[0] = time.perf_counter() - begun
            tokens.extend(event.tokens)
            with DETOKENISE:
                piece = stream.push(event.tokens)
            if stream.stopped:
                self.engine.cancel(request_id)
            if event.finish is not None:
                finish = "stop" if stream.stopped else event.finish
                piece += stream.flush()
            pieces.append(piece)
            if piece and on_text is not None:
                on_text(piece)

        self._steps[request_id] = []
        self.engine.submit(
            Request(
                request_id,
                prompt,
                max_tokens,
                on_event,
                embeddings,
                sampling or Sampling(),
                frozenset(self.manifest.end_ids),
            )
        )
        try:
            self.engine.run_until_idle()
        except KeyboardInterrupt:
            self.engine.cancel(request_id)
            self.engine.step()
        before = 0 if frames is None else len(frames) * self.manifest.vision.tokens_per_frame
        return LocalAnswer(
            text="".join(pieces),
            tokens=tokens,
            finish=finish,
            input_tokens=len(prompt),
            output_tokens=len(tokens),
            visual_tokens_before=before,
            visual_tokens=visual,
            time_to_first_token=first[0],
            total_time=time.perf_counter() - begun,
            steps=self._steps.pop(request_id),
            config=self.config,
            selection=self.engine.selection.snapshot(),
        )

    def _keep_trace(self, request_id: str, step: StepTrace) -> None:
        if request_id in self._steps:
            self._steps[request_id].append(step)
