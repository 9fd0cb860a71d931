"""Model `dycoke_bls`: the ensemble's steps as one model.

What the ensemble cannot do: a request needs no id, text alone is allowed, stop words are compared
as text, and cancelling works at every stage. One thread per request; the LLM step batches them.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ...bundle.record import open_build
from ...core.dtype import Dtype
from ...core.errors import DyCokeError, QueueFullError
from ...runtime import protocol as p
from ...runtime.detokenize import TextStream
from ...runtime.limits import RequestLimits
from ...runtime.prompt import load_tokenizer
from ...runtime.stages import DETOKENISE
from ...runtime.stop_words import read_stop_words
from .calls import Responses, generate, stop_generation, stop_preprocessing
from .request_threads import RequestThreads
from .requests import (
    CancelledError,
    StepError,
    check_parameters,
    output_error,
    parameters,
    single,
    tensors,
    text_tensor,
)
from .sender import Sender

_WATCH_SECONDS = 0.005
# What the server says of a step whose line is full, and of a request that waited too long in it.
_SERVER_REFUSES = ("Exceeds maximum queue size", "Request timeout expired")
_LLM_OUTPUTS = (*p.TOKENS, *p.TOKEN_COUNTS)  # all that every backend of the step has


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        given = parameters(args)
        bundle = Path(given["bundle"])
        manifest, record = open_build(bundle, given["build"])
        self._errors_as_output = given[p.ERRORS_AS_OUTPUT.name] == "true"
        self._limits = RequestLimits.from_parameters(given)
        self._text_ids = manifest.visual_token_base
        self._has_numpy = manifest.vision.dtype != Dtype.BF16
        self._tokenizer = load_tokenizer(bundle)
        # As many as the LLM step takes: none waits here, where nothing would be known of it.
        most = record.max_batch + self._limits.max_queue
        self._threads = RequestThreads(
            p.BLS, most, self._answer, seconds="dycoke_request_seconds", decoupled=True
        )
        # Request id -> its sender, and what ends the step that it is in.
        self._steps: dict[str, tuple[Sender, Callable[[str], None]]] = {}
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._watcher.start()

    def execute(self, requests: list[Any]) -> None:
        self._threads.execute(requests)

    def in_flight(self) -> int:
        return self._threads.held()

    def finalize(self) -> None:
        self._threads.close()
        self._stopping.set()
        self._watcher.join()

    def _renamed(self, tensor: Any, name: str) -> Any:
        """The same data under another name."""
        if self._has_numpy and tensor.is_cpu():
            return pb_utils.Tensor(name, tensor.as_numpy())
        return pb_utils.Tensor.from_dlpack(name, tensor.to_dlpack())

    def _answer(self, request: Any, sender: Sender) -> Any:
        """The last response; earlier ones are sent."""
        check_parameters(request)
        inputs = {tensor.name(): tensor for tensor in request.inputs()}
        # The LLM step sees an id of our own, so that clients may send any or none.
        request_id = uuid.uuid4().hex
        given = inputs["stop_words"].as_numpy().reshape(-1) if "stop_words" in inputs else []
        stop_words = read_stop_words(list(given), self._limits)
        echo = not _flag(inputs, "exclude_input_in_output", default=True)
        if echo and stop_words:
            raise DyCokeError(
                "exclude_input_in_output: false cannot be combined with stop_words; leave one out"
            )
        video = [name for name in ("video_bytes_input", "video_file_input") if name in inputs]
        # Preprocessing looks at all of them before it decodes; stop words are looked for here.
        question = [
            inputs[spec.name]
            for spec in p.CLIENT_INPUTS
            if spec.name in inputs and spec.name != "stop_words"
        ]
        if not video:
            question.append(pb_utils.Tensor("text_only", np.ones((1, 1), np.bool_)))
        names = [spec.name for spec in p.PROMPT]
        visual = ["frames", p.PROMPT_VOCAB_SIZE.name] if video else []
        with self._watched(request_id, sender, stop_preprocessing):
            made = self._call(p.PREPROCESSING, request_id, question, [*names, *visual], sender)
        prompt = [made[name] for name in names]
        if video:
            frames = made["frames"]
            embeds = self._call(p.VISION, request_id, [frames], ["visual_embeds"], sender)
            table = self._renamed(embeds["visual_embeds"], p.PROMPT_TABLE)
            prompt += [made[p.PROMPT_VOCAB_SIZE.name], table]
        stream = _flag(inputs, "stream", default=False)
        # Stop words are found in the text, so a generation with them is watched as it goes.
        options = {
            spec.name: inputs[name].as_numpy()
            for name, spec in p.ANSWER_INPUTS.items()
            if name in inputs
        }
        options["streaming"] = np.array([[stream or bool(stop_words)]])
        ready = [*prompt, *tensors(options)]
        with closing(self._generate(request_id, ready, sender)) as responses:
            return self._deliver(request_id, responses, stop_words, stream, sender)

    def _deliver(
        self,
        request_id: str,
        responses: Iterator[Any],
        stop_words: Sequence[str],
        stream: bool,
        sender: Sender,
    ) -> Any:
        """Sends each response as text, without `stream` none; returns what is left at the end."""
        text = TextStream(self._tokenizer, stop_words)
        stopped = False
        pieces: list[str] = []
        counts: dict[str, int] = {}
        for response in responses:
            outputs = {t.name(): t.as_numpy() for t in response.output_tensors()}
            if stopped:
                continue  # what was on its way when the generation was ended
            for spec in p.TOKEN_COUNTS:
                if spec.name in outputs:
                    value = int(outputs[spec.name].item())
                    before = counts.get(spec.name, 0) if spec.name == "num_output_tokens" else 0
                    counts[spec.name] = before + value
            ids = outputs["output_ids"][0, 0].tolist()
            with DETOKENISE:
                pieces.append(text.push([token for token in ids if token < self._text_ids]))
            stopped = text.stopped
            if stopped:
                stop_generation(request_id)
            elif stream and "".join(pieces):
                sender.send(_response("".join(pieces), counts))
                pieces, counts = [], {}
        pieces.append(text.flush())
        return _response("".join(pieces), counts)

    def _call(
        self, model: str, request_id: str, inputs: list[Any], outputs: list[str], sender: Sender
    ) -> dict[str, Any]:
        """Runs a step that answers once. Raises StepError, or CancelledError after it."""
        if sender.is_cancelled():
            raise CancelledError
        response = pb_utils.InferenceRequest(
            model_name=model,
            request_id=request_id,
            requested_output_names=outputs,
            inputs=inputs,
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise _step_error(model, response.error())
        if sender.is_cancelled():
            raise CancelledError
        return {tensor.name(): tensor for tensor in response.output_tensors()}

    def _generate(self, request_id: str, inputs: list[Any], sender: Sender) -> Responses:
        """The LLM step's responses. Raises StepError; ends early where the client cancelled."""
        outputs = [spec.name for spec in _LLM_OUTPUTS]
        if self._errors_as_output:
            outputs.append(p.ERROR.name)
            inputs = [*inputs, *tensors({p.ERRORS_AS_OUTPUT.name: np.ones((1, 1), np.bool_)})]
        with (
            self._watched(request_id, sender, stop_generation),
            closing(generate(request_id, inputs, outputs)) as responses,
        ):
            for response in responses:
                if response.has_error():
                    raise StepError(response.error())
                if (error := output_error(response.output_tensors())) is not None:
                    raise StepError(error)
                if response.output_tensors():  # the final flag may come alone
                    yield response

    @contextmanager
    def _watched(
        self, request_id: str, sender: Sender, stop: Callable[[str], None]
    ) -> Iterator[None]:
        self._steps[request_id] = sender, stop
        try:
            yield
        finally:
            self._steps.pop(request_id, None)

    def _watch(self) -> None:
        """Ends steps whose client cancelled, also while they wait or prefill."""
        while not self._stopping.wait(_WATCH_SECONDS):
            for request_id, (sender, stop) in list(self._steps.items()):
                try:
                    if sender.is_cancelled():
                        self._steps.pop(request_id, None)
                        stop(request_id)
                except Exception as error:
                    pb_utils.Logger.log_error(f"{request_id}: {error}")


def _step_error(model: str, error: Any) -> Exception:
    """Of a line that is full or slow the server knows the code, but does not pass it on to here."""
    if any(reason in error.message() for reason in _SERVER_REFUSES):
        return QueueFullError(f"{model}: {error.message()}; try again later")
    return StepError(error)


def _response(text: str, counts: Mapping[str, int]) -> Any:
    values = {name: np.array([[value]], np.int32) for name, value in counts.items()}
    return pb_utils.InferenceResponse([text_tensor("text_output", text), *tensors(values)])


def _flag(inputs: Mapping[str, Any], name: str, *, default: bool) -> bool:
    return bool(single(name, inputs[name].as_numpy())) if name in inputs else default
