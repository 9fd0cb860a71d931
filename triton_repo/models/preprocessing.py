"""Model `preprocessing`: question and video to frames and prompt tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from ...bundle.files import open_bundle
from ...core.errors import DyCokeError
from ...runtime.preparation import Arrays, Preparation
from ...runtime.video.limits import VideoLimits
from .requests import (
    array,
    check_parameters,
    error_response,
    parameter,
    parameters,
    scalar,
    tensors,
)


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        bundle = Path(parameter(args, "bundle"))
        limits = VideoLimits.from_parameters(parameters(args))
        self._prepare = Preparation(bundle, open_bundle(bundle), limits)

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
        video, stop_words = array(request, "video_bytes_input"), array(request, "stop_words")
        return self._prepare(
            scalar(request, "text_input"),
            video=None if video is None else video[0],
            file=scalar(request, "video_file_input"),
            num_frames=scalar(request, "num_frames"),
            max_tokens=scalar(request, "max_tokens"),
            stop_words=() if stop_words is None else stop_words.reshape(-1).tolist(),
            text_only=bool(scalar(request, "text_only")),
        )
