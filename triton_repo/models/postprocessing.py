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
from ...core.errors import DyCokeError
from ...runtime.detokenize import TextStreams
from ...runtime.prompt import load_tokenizer
from ...runtime.protocol import TOKEN_COUNTS
from ...runtime.stages import DETOKENISE
from .calls import stop_generation
from .plugin_metrics import PluginMetrics
from .requests import (
    array,
    error_response,
    parameters,
    scalar,
    single,
    tensors,
    text_tensor,
)


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        given = parameters(args)
        bundle = Path(given["bundle"])
        self._text_ids = open_bundle(bundle).visual_token_base
        self._streams = TextStreams(load_tokenizer(bundle))
        # Of a backend that does not publish them itself.
        self._metrics = PluginMetrics() if "publish_counters" in given else None

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
        tokens = self._tokens(request)
        # TensorRT-LLM's backend sends no marks.
        first = bool(scalar(request, "is_first"))
        with DETOKENISE:
            return self._streams.push(name, tokens, first=first, final=final)

    def _tokens(self, request: Any) -> list[int]:
        """Those of the text: padding behind the sequence and, where the prompt is echoed, visual
        tokens are none."""
        ids, length = array(request, "output_ids"), array(request, "sequence_length")
        assert ids is not None  # Triton refuses a request without them
        assert length is not None
        if ids.ndim != 3 or ids.shape[:2] != (1, 1):
            raise DyCokeError(f"output_ids: shape {list(ids.shape)}; allowed: [1, 1, n]")
        count = single("sequence_length", length)
        if not 0 <= count <= ids.shape[2]:
            raise DyCokeError(
                f"sequence_length: {count}, output_ids has {ids.shape[2]}; allowed: 0 to that"
            )
        tokens = ids[0, 0, :count].tolist()
        if tokens and min(tokens) < 0:
            raise DyCokeError(f"output_ids: token {min(tokens)}; allowed: >= 0")
        return [token for token in tokens if token < self._text_ids]
