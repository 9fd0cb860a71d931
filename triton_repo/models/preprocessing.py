"""Model `preprocessing`: question and video to frames and prompt tokens.

One process takes all requests, a thread for each, so that one whose video takes long keeps none
waiting; videos are read by processes of their own (runtime/video/line.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from ...bundle.record import open_build
from ...core.errors import DyCokeError
from ...runtime.capacity import Capacity
from ...runtime.limits import RequestLimits
from ...runtime.preparation import Arrays, Preparation
from ...runtime.protocol import PREPROCESSING
from ...runtime.video.limits import VideoLimits
from ...runtime.video.line import VideoReader
from .request_threads import RequestThreads
from .requests import (
    CancelledError,
    array,
    check_parameters,
    parameters,
    scalar,
    tensors,
)
from .sampling_inputs import CLIENT_NAMES, read_echo, read_sampling
from .sender import Sender


class TritonPythonModel:
    DOOR = True  # both pipelines begin here (alive.py)

    def initialize(self, args: Mapping[str, str]) -> None:
        given = parameters(args)
        bundle = Path(given["bundle"])
        manifest, record = open_build(bundle, given["build"])
        limits = RequestLimits.from_parameters(given)
        self._prepare = Preparation(
            bundle,
            manifest,
            VideoLimits.from_parameters(given),
            requests=limits,
            capacity=Capacity.of_record(manifest, record),
        )
        self._reader = VideoReader(limits.preprocessors, limits.max_wait_seconds)
        self._end: Exception | None = None  # with what each request ends
        self._threads = RequestThreads(
            PREPROCESSING,
            record.max_batch + limits.max_queue,
            self._respond,
            seconds="dycoke_preprocessing_seconds",
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._take(request) for request in requests]

    def in_flight(self) -> int:
        return self._threads.held()

    def end_streams(self, error: Exception) -> None:
        self._end = error

    def finalize(self) -> None:
        self._threads.close()
        self._reader.close()

    def _take(self, request: Any) -> Any:
        if scalar(request, "stop"):
            # Not an error where nothing is in flight: the request may just have ended.
            self._threads.stop(request.request_id())
            return pb_utils.InferenceResponse(output_tensors=[])
        (response,) = self._threads.execute([request])
        return response

    def _respond(self, request: Any, sender: Sender) -> Any:
        return pb_utils.InferenceResponse(tensors(self._run(request, sender)))

    def _run(self, request: Any, sender: Sender) -> Arrays:
        check_parameters(request)
        if not request.request_id():
            # Postprocessing tells streams apart by it, and cancelling goes by it.
            raise DyCokeError(
                "request id: missing; the ensemble needs one that is unique, dycoke_bls does not"
            )
        # Looked at here too, so that nothing is decoded for what the LLM step would refuse.
        read_sampling(request, CLIENT_NAMES)
        read_echo(request, CLIENT_NAMES)
        video, stop_words = array(request, "video_bytes_input"), array(request, "stop_words")

        def still_wanted() -> None:
            if self._end is not None:
                raise self._end
            if sender.is_cancelled():
                raise CancelledError

        return self._prepare(
            scalar(request, "text_input"),
            video=None if video is None else _one(video),
            file=scalar(request, "video_file_input"),
            num_frames=scalar(request, "num_frames"),
            max_tokens=scalar(request, "max_tokens"),
            stop_words=() if stop_words is None else stop_words.reshape(-1).tolist(),
            text_only=bool(scalar(request, "text_only")),
            make_frames=lambda work: self._reader.read(work, still_wanted),
        )


def _one(video: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[1, F, H, W, 3] without its batch."""
    if len(video) != 1:
        raise DyCokeError(f"video_bytes_input: a batch of {len(video)}; allowed: 1")
    return video.squeeze(0)
