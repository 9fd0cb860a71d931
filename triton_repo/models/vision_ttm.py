"""Model `vision_ttm` in Python: ONNX Runtime on a CPU, torch or a TensorRT engine on a GPU.

An engine's embeddings stay in the GPU's memory where TensorRT-LLM's backend takes them from there,
as NVIDIA's own vision models hand it theirs (triton_backend/all_models/multimodal of TensorRT-LLM).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from ...bundle.record import open_build
from ...runtime.limits import RequestLimits
from ...runtime.passing import PassingLine
from ...runtime.protocol import VISION as VISION_TTM
from ...runtime.stages import VISION
from ...runtime.vision import load_vision
from .request_threads import RequestThreads
from .requests import CancelledError, array, check_parameters, error_response, parameters
from .sender import Sender
from .torch_tensors import torch_array, torch_tensor


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        given = parameters(args)
        bundle, build = Path(given["bundle"]), given["build"]
        self._manifest, record = open_build(bundle, build)
        threads, cuda_graph = int(given["threads"]), given["cuda_graph"] == "true"
        self._vision = load_vision(bundle, build, threads, given["vision"], cuda_graph=cuda_graph)
        limits = RequestLimits.from_parameters(given)
        # On a GPU one run fills the device, and an engine has one context.
        self._line = PassingLine() if build == "cpu" else None
        self._threads = RequestThreads(
            VISION_TTM,
            record.max_batch + limits.max_queue,
            self._pass,
            seconds="dycoke_vision_seconds",
        )
        self._on_gpu = given["embeds_memory"] == "gpu"

    def execute(self, requests: list[Any]) -> list[Any]:
        if self._line is not None:
            return self._threads.execute(requests)
        return [self._respond(request) for request in requests]

    def in_flight(self) -> int:
        return self._threads.held()

    def finalize(self) -> None:
        self._threads.close()

    def _pass(self, request: Any, sender: Sender) -> Any:
        """Few frames do not wait for many."""
        assert self._line is not None
        frames = array(request, "frames")
        assert frames is not None  # Triton refuses a request without it
        with self._line.turn(frames.shape[1]):
            if sender.is_cancelled():
                raise CancelledError
            return self._respond(request)

    def _respond(self, request: Any) -> Any:
        try:
            check_parameters(request)
            frames = torch_array(request, "frames")
            assert frames is not None  # Triton refuses a request without it
            self._manifest.visual_tokens(frames.shape[1])  # refuses a wrong number of frames
            with VISION:
                embeds = self._vision(frames)
            if not self._on_gpu:
                embeds = embeds.cpu()
            return pb_utils.InferenceResponse([torch_tensor("visual_embeds", embeds)])
        except Exception as error:
            return error_response(error)
