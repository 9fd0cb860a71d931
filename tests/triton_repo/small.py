"""A small model repository with the client's tensors, so that the server's two ends need no bundle.

The model answers "one two three" with a word per response; what it does otherwise stands in the
question: `sleep` waits until it is cancelled, `how many cancelled` counts these, `what arrived`
names the inputs, `refuse` is an error of the user, `hang` never answers, `exit` ends the process.
"""

from __future__ import annotations

import json
from pathlib import Path

from dycoke_trt.runtime import protocol as p
from dycoke_trt.triton_repo.config_pbtxt import ModelConfig

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
MODEL = """
import json, os, threading
import numpy as np
import triton_python_backend_utils as pb
from dycoke_trt.triton_repo.models.alive import alive

WORDS = {words!r}
FINAL = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def value(request, name, default=None):
    tensor = pb.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().reshape(-1)[0]


class TritonPythonModel:
    def initialize(self, args):
        self.cancelled, self.kept = 0, []
        {initialize}

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            self.kept.append(sender)
            question = value(request, "text_input").decode()
            if "exit" in question:
                os._exit(3)
            if "hang" in question:
                continue
            threading.Thread(target=self.answer, args=(request, sender, question)).start()

    def answer(self, request, sender, question):
        if "refuse" in question:
            error = pb.TritonError("text_input: not that one", pb.TritonError.INVALID_ARG)
            sender.send(pb.InferenceResponse([], error=error), flags=FINAL)
            return
        if "how many cancelled" in question:
            words = [str(self.cancelled)]
        elif "what arrived" in question:
            shapes = {t.name(): list(t.as_numpy().shape) for t in request.inputs()}
            words = [f"{name}{shape}".replace(" ", "") for name, shape in shapes.items()]
        elif "sleep" in question:
            words = self.until_cancelled(sender)
        else:
            words = WORDS[: int(value(request, "max_tokens", 3))]
        pieces = (word if i == 0 else " " + word for i, word in enumerate(words))
        if not value(request, "stream", False):
            pieces = ["".join(pieces)]
        for text in pieces:
            counts = dict(num_input_tokens=7, num_output_tokens=len(text.split()))
            outputs = [pb.Tensor("text_output", np.array([[text.encode()]], np.object_))]
            outputs += [pb.Tensor(n, np.array([[c]], np.int32)) for n, c in counts.items()]
            sender.send(pb.InferenceResponse(outputs))
        sender.send(flags=FINAL)

    def until_cancelled(self, sender):
        yield "waiting"
        pause = threading.Event()
        while not sender.is_cancelled():
            pause.wait(0.01)
        self.cancelled += 1


TritonPythonModel = alive(TritonPythonModel)
"""


def write_small_repository(folder: Path, *models: str, initialize: str = "pass") -> Path:
    """initialize: the statement that the models run when they are loaded."""
    for name in models or (p.ENSEMBLE, p.BLS):
        tokens = {"tokens_per_frame": "36", "visual_tokens": json.dumps({"16": 265})}
        shown = {"image_size": "48", **tokens}
        config = ModelConfig(
            name, p.CLIENT_INPUTS, p.CLIENT_OUTPUTS, decoupled=True, parameters=shown
        )
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(config.text())
        source = MODEL.replace("{words!r}", repr(WORDS)).replace("{initialize}", initialize)
        (folder / name / "1" / "model.py").write_text(source)
    return folder
