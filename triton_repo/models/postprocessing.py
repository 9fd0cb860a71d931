"""Model `postprocessing`: tokens of a stream to text, one response at a time.

Only a character that is split over tokens needs state, kept by request id until it is complete.
This is also where a cancelled ensemble request is noticed: the server tells no step that runs, but
every step that begins, so that the next token of a cancelled stream ends its generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from ...bundle.files import open_bundle
from ...runtime.detokenize import TextStreams
from ...runtime.prompt import load_tokenizer
from ...runtime.protocol import TOKEN_COUNTS
from ...runtime.stages import DETOKENISE
from .llm_calls import stop_generation
from .plugin_metrics import PluginMetrics
from .requests import (
    array,
    error_response,
    has_parameter,
    parameter,
    scalar,
    tensors,
    text_tensor,
)


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        bundle = Path(parameter(args, "bundle"))
        self._text_ids = open_bundle(bundle).visual_token_base
        self._streams = TextStreams(load_tokenizer(bundle))
        # Of a backend that does not publish them itself.
        self._metrics = PluginMetrics() if has_parameter(args, "publish_counters") else None

    def finalize(self) -> None:
        if self._metrics is not None:
            self._metrics.close()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            text = text_tensor("text_output", self._text(request))
            counts = {spec.name: array(request, spec.name) for spec in TOKEN_COUNTS}
            known = {name: count for name, count in counts.items() if count is not None}
            return pb_utils.InferenceResponse([text, *tensors(known)])
        except Exception as error:
            return error_response(error)

    def _text(self, request: Any) -> str:
        name = request.request_id()
        final = bool(scalar(request, "is_final"))
        if request.is_cancelled() and not final:
            stop_generation(name)
        ids = array(request, "output_ids")
        assert ids is not None  # Triton refuses a request without it
        # Padding behind the sequence and, where the prompt is echoed, visual tokens are no text.
        length = int(array(request, "sequence_length").reshape(-1)[0])  # type: ignore[union-attr]
        tokens = [token for token in ids[0, 0, :length].tolist() if token < self._text_ids]
        # TensorRT-LLM's backend sends no marks.
        first = bool(scalar(request, "is_first"))
        with DETOKENISE:
            return self._streams.push(name, tokens, first=first, final=final)
