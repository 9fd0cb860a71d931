"""Model `vision_ttm` without TensorRT: ONNX Runtime on a CPU, torch on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from ...bundle.files import open_bundle
from ...runtime.stages import VISION
from ...runtime.vision import load_vision
from .requests import array, check_parameters, error_response, parameter
from .torch_tensors import torch_tensor


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        bundle = Path(parameter(args, "bundle"))
        self._manifest = open_bundle(bundle)
        threads = int(parameter(args, "threads"))
        self._vision = load_vision(bundle, parameter(args, "build"), threads)

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
            return pb_utils.InferenceResponse([torch_tensor("visual_embeds", embeds)])
        except Exception as error:
            return error_response(error)
