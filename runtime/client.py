"""Asks a running Triton server over gRPC. Needs neither the bundle nor, for short files, torch."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from ..core.errors import DyCokeError
from . import protocol
from .answer import Answer
from .stages import SEND

MAX_FILE_BYTES = 32 << 20  # a larger video is sampled here, and its frames are sent
_CONNECT_SECONDS = 15.0
_DTYPES = {"BOOL": np.bool_, "INT32": np.int32, "UINT64": np.uint64, "FP32": np.float32}
_RANGES = {"INT32": range(-(2**31), 2**31), "UINT64": range(2**64)}
_SPECS = {spec.name: spec for spec in protocol.CLIENT_INPUTS}


@dataclass(frozen=True, kw_only=True)
class ServerAnswer(Answer):
    """What a server answered."""

    request_id: str


def ask_server(
    server: str,
    question: str,
    *,
    video: Path | None = None,
    frames: int = protocol.DEFAULT_FRAMES,
    max_tokens: int = protocol.DEFAULT_MAX_TOKENS,
    temperature: float = 1.0,
    top_k: int = 1,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: Sequence[str] = (),
    model: str | None = None,
    on_text: Callable[[str], None] = lambda _: None,
) -> ServerAnswer:
    """Streams one answer. server: HOST:PORT of its gRPC service; frames: sampled from the video.

    model: by default the ensemble; `dycoke_bls` for text alone and for stop words, which only it
    compares as text. on_text: gets each piece of
    text as it arrives. Raises DyCokeError, one line, for everything that the server refuses and
    where it cannot be reached or goes away. KeyboardInterrupt cancels the request first.
    """
    from tritonclient.grpc import InferenceServerClient, InferenceServerException

    if not re.fullmatch(r"[^/\s]+:\d{1,5}", server):
        raise DyCokeError(f"server {server!r} is not allowed; allowed: HOST:PORT of its gRPC port")
    name = model or (protocol.BLS if video is None or stop else protocol.ENSEMBLE)
    values: dict[str, Any] = {
        "text_input": question.encode("utf-8", "surrogatepass"),
        "max_tokens": max_tokens,
        "top_k": 1 if temperature == 0 else top_k,  # greedy, for every backend
        "stream": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }
    if values["top_k"] != 1:  # greedy answers have no other setting
        values |= {"temperature": temperature, "top_p": top_p}
    if seed is not None:
        values["seed"] = seed
    if stop:
        values["stop_words"] = [word.encode("utf-8", "surrogatepass") for word in stop]
    sent = False
    with closing(InferenceServerClient(server)) as client:
        try:
            with SEND:
                reply = client.get_model_config(name, as_json=True, client_timeout=_CONNECT_SECONDS)
                shown = reply["config"].get("parameters", {})
                if video is not None:
                    values |= video_inputs(video, frames, lambda: _image_size(shown))
                inputs = [request_tensor(key, value) for key, value in values.items()]
            sent = True
            return _stream(client, name, inputs, _visual_tokens(shown, video, frames), on_text)
        except InferenceServerException as error:
            raise _in_one_line(error, server, name, sent) from None


def _stream(
    client: Any,
    model: str,
    inputs: list[Any],
    visual: tuple[int | None, int | None],
    on_text: Callable[[str], None],
) -> ServerAnswer:
    """Sends the request and reads its responses to the end."""
    # The server tells streams apart by it.
    request_id = uuid.uuid4().hex
    pieces: list[str] = []
    input_tokens = output_tokens = 0
    first: float | None = None
    arrived: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
    finished = False
    with SEND:
        client.start_stream(lambda result, error: arrived.put((result, error)))
    try:
        begun = time.perf_counter()
        with SEND:
            client.async_stream_infer(
                model, inputs, request_id=request_id, enable_empty_final_response=True
            )
        for result in _responses(arrived):
            if (text := result.as_numpy("text_output")) is not None:
                # Counts are of one response: the prompt's repeat, the answer's add up.
                produced = _count(result, "num_output_tokens")
                input_tokens = _count(result, "num_input_tokens") or input_tokens
                output_tokens += produced
                if first is None and produced:
                    first = time.perf_counter() - begun
                pieces.append(text.reshape(-1)[0].decode("utf-8", "replace"))
                if pieces[-1]:
                    on_text(pieces[-1])
        finished = True
        total = time.perf_counter() - begun
    finally:
        client.stop_stream(cancel_requests=not finished)
    return ServerAnswer(
        text="".join(pieces),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        visual_tokens_before=visual[0],
        visual_tokens=visual[1],
        time_to_first_token=total if first is None else first,
        total_time=total,
        request_id=request_id,
    )


def _responses(arrived: SimpleQueue[tuple[Any, Any]]) -> Iterator[Any]:
    """Responses up to the final one. Raises InferenceServerException as the server sent it."""
    while True:
        result, error = arrived.get()
        if error is not None:
            raise error
        yield result
        if result.get_response().parameters["triton_final_response"].bool_param:
            return


def _count(result: Any, name: str) -> int:
    value = result.as_numpy(name)
    return 0 if value is None else int(value.reshape(-1)[0])


def request_tensor(name: str, value: Any) -> Any:
    """An input tensor with its batch dimension. Raises DyCokeError for a number out of range."""
    from tritonclient.grpc import InferInput

    dtype = _SPECS[name].dtype
    if isinstance(value, np.ndarray):
        array = value
    elif dtype == "BYTES":
        array = np.array([value if isinstance(value, list) else [value]], np.object_)
    else:
        if dtype in _RANGES and value not in _RANGES[dtype]:
            bounds = f"{_RANGES[dtype][0]} to {_RANGES[dtype][-1]}"
            raise DyCokeError(f"{name}: {value} is not allowed; allowed: {bounds}")
        array = np.array([[value]], _DTYPES[dtype])
    tensor = InferInput(name, list(array.shape), dtype)
    tensor.set_data_from_numpy(array)
    return tensor


def video_inputs(video: Path, frames: int, size: Callable[[], int | None]) -> dict[str, Any]:
    """The file as it is, or sampled frames of one that is large, resized to what the server takes.

    size: says the size of the server's vision tower; None leaves frames as they are.
    """
    try:
        if video.stat().st_size <= MAX_FILE_BYTES:
            return {"video_file_input": video.read_bytes(), "num_frames": frames}
    except FileNotFoundError:
        raise DyCokeError(f"{video}: no such file") from None
    except OSError as error:
        raise DyCokeError(f"{video}: cannot be read ({error.strerror})") from None
    from .video.read import read_video  # needs torch

    return {"video_bytes_input": read_video(video, frames, size=size()).numpy()[None]}


def image_size(server: str, model: str) -> int | None:
    """Of the vision tower behind `model`; None where the server does not say."""
    from tritonclient.grpc import InferenceServerClient, InferenceServerException

    with closing(InferenceServerClient(server)) as client:
        try:
            reply = client.get_model_config(model, as_json=True, client_timeout=_CONNECT_SECONDS)
        except InferenceServerException as error:
            raise _in_one_line(error, server, model, sent=False) from None
    return _image_size(reply["config"].get("parameters", {}))


def _image_size(parameters: dict[str, Any]) -> int | None:
    """What the model's configuration says; None where it does not."""
    return int(parameters["image_size"]["string_value"]) if "image_size" in parameters else None


def _visual_tokens(
    parameters: dict[str, Any], video: Path | None, frames: int
) -> tuple[int | None, int | None]:
    """Before and after TTM, from what the model's configuration says."""
    if video is None:
        return 0, 0
    try:
        per_frame = int(parameters["tokens_per_frame"]["string_value"])
        kept = json.loads(parameters["visual_tokens"]["string_value"])[str(frames)]
    except (KeyError, ValueError):
        return None, None  # another model than ours, or frames that it will refuse
    return frames * per_frame, int(kept)


def _in_one_line(error: Any, server: str, model: str, sent: bool) -> DyCokeError:
    """What an InferenceServerException means for the user."""
    message = " ".join(str(error.message()).split())
    status = str(error.status() or "").rpartition(".")[2]
    if "unknown model" in message:
        return DyCokeError(
            f"{server} has no model {model!r} that is ready ({message}); start the server with: "
            "dycoke serve BUNDLE"
        )
    if sent and status == "UNAVAILABLE":
        return DyCokeError(
            f"{server}: the connection was lost before the answer ended ({message}); what the "
            "server printed says why"
        )
    if status in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED"):
        return DyCokeError(
            f"{server}: no Triton server answers over gRPC there ({message}); is it the gRPC port? "
            "To start a server: dycoke serve BUNDLE"
        )
    return DyCokeError(f"{server}, {model}: {message}")
