"""Model `vision_ttm` on a CPU: the bundle's ONNX graph in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from ...bundle.files import open_bundle
from ...runtime.stages import VISION
from ...runtime.vision import OnnxVision
from .requests import array, check_parameters, error_response, parameter, tensors


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        bundle = Path(parameter(args, "bundle"))
        self._manifest = open_bundle(bundle)
        self._vision = OnnxVision(bundle, threads=int(parameter(args, "threads")))

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            check_parameters(request)
            frames = array(request, "frames")
            assert frames is not None  # Triton refuses a request without it
            self._manifest.visual_tokens(frames.shape[1])  # refuses a wrong number of frames
            with VISION:
                embeds = self._vision(torch.from_numpy(frames))
            return pb_utils.InferenceResponse(tensors({"visual_embeds": embeds.numpy()}))
        except Exception as error:
            return error_response(error)
