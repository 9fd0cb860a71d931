"""Model `preprocessing`: question and video to frames and prompt tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from ...bundle.files import open_bundle
from ...core.errors import DyCokeError
from ...runtime.capacity import Capacity
from ...runtime.limits import RequestLimits
from ...runtime.preparation import Arrays, Preparation
from ...runtime.video.limits import VideoLimits
from .requests import (
    array,
    check_parameters,
    error_response,
    parameters,
    scalar,
    tensors,
)
from .sampling_inputs import CLIENT_NAMES, read_echo, read_sampling


class TritonPythonModel:
    DOOR = True  # both pipelines begin here (alive.py)

    def initialize(self, args: Mapping[str, str]) -> None:
        given = parameters(args)
        bundle = Path(given["bundle"])
        manifest = open_bundle(bundle)
        self._prepare = Preparation(
            bundle,
            manifest,
            VideoLimits.from_parameters(given),
            requests=RequestLimits.from_parameters(given),
            capacity=Capacity.of(bundle, manifest, given["build"]),
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            return pb_utils.InferenceResponse(tensors(self._run(request)))
        except Exception as error:
            return error_response(error)

    def _run(self, request: Any) -> Arrays:
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
        return self._prepare(
            scalar(request, "text_input"),
            video=None if video is None else _one(video),
            file=scalar(request, "video_file_input"),
            num_frames=scalar(request, "num_frames"),
            max_tokens=scalar(request, "max_tokens"),
            stop_words=() if stop_words is None else stop_words.reshape(-1).tolist(),
            text_only=bool(scalar(request, "text_only")),
        )


def _one(video: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[1, F, H, W, 3] without its batch."""
    if len(video) != 1:
        raise DyCokeError(f"video_bytes_input: a batch of {len(video)}; allowed: 1")
    return video.squeeze(0)
