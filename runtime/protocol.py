"""Names, types and shapes of the tensors between clients, the ensemble and its models.

One table for the model repository, the Python models and the client. Types are Triton's names
(`UINT8`, `BYTES`, ...); shapes leave out the batch dimension, which is 1 and comes first.
The LLM step has the tensors of Triton's TensorRT-LLM backend
(inflight_batcher_llm/tensorrt_llm/config.pbtxt of release 1.2).
"""

from __future__ import annotations

from typing import NamedTuple

from ..core.dtype import Dtype

ENSEMBLE = "dycoke"
BLS = "dycoke_bls"
PREPROCESSING = "preprocessing"
VISION = "vision_ttm"
LLM = "tensorrt_llm"
POSTPROCESSING = "postprocessing"

DEFAULT_FRAMES = 16
DEFAULT_MAX_TOKENS = 256


class TensorSpec(NamedTuple):
    """A tensor of a model; -1 in `shape` is a dimension of any size."""

    name: str
    dtype: str
    shape: tuple[int, ...] = (1,)
    optional: bool = False


def optional(name: str, dtype: str, shape: tuple[int, ...] = (1,)) -> TensorSpec:
    return TensorSpec(name, dtype, shape, True)


# What a person sends: question, one video, how to answer.
VIDEO_BYTES = optional("video_bytes_input", "UINT8", (-1, -1, -1, -1))  # [F, H, W, 3] RGB
VIDEO_FILE = optional("video_file_input", "BYTES")  # an encoded file, or a base64 data: URI of one
QUESTION_INPUTS = (
    TensorSpec("text_input", "BYTES"),
    VIDEO_BYTES,
    VIDEO_FILE,
    optional("num_frames", "INT32"),  # sampled from video_file_input
    optional("max_tokens", "INT32"),
    optional("stop_words", "BYTES", (-1,)),
)
# With a request's id: ends it, in the steps that take long.
STOP = optional("stop", "BOOL")
# `dycoke_bls` says so where it asks about no video; the ensemble cannot.
TEXT_ONLY = optional("text_only", "BOOL")
# Passed on to the LLM step under its own names.
ANSWER_INPUTS = {
    "temperature": optional("temperature", "FP32"),
    "top_k": optional("runtime_top_k", "INT32"),
    "top_p": optional("runtime_top_p", "FP32"),
    "seed": optional("seed", "UINT64"),
    "stream": optional("streaming", "BOOL"),
    "exclude_input_in_output": optional("exclude_input_in_output", "BOOL"),
    "return_num_input_tokens": optional("return_num_input_tokens", "BOOL"),
    "return_num_output_tokens": optional("return_num_output_tokens", "BOOL"),
}
CLIENT_INPUTS = QUESTION_INPUTS + tuple(
    optional(name, spec.dtype, spec.shape) for name, spec in ANSWER_INPUTS.items()
)
# Counts are of one response, so a client adds up the output tokens of a stream.
TOKEN_COUNTS = (TensorSpec("num_input_tokens", "INT32"), TensorSpec("num_output_tokens", "INT32"))
CLIENT_OUTPUTS = (TensorSpec("text_output", "BYTES"), *TOKEN_COUNTS)

PROMPT = (
    TensorSpec("input_ids", "INT32", (-1,)),
    TensorSpec("input_lengths", "INT32"),
    TensorSpec("request_output_len", "INT32"),
    TensorSpec("end_id", "INT32"),
    TensorSpec("pad_id", "INT32"),
    # Token sequences end to end, and the offset after each: TensorRT-LLM's format.
    TensorSpec("stop_words_list", "INT32", (2, -1)),
)
PROMPT_VOCAB_SIZE = optional("prompt_vocab_size", "INT32")
PROMPT_TABLE = "prompt_embedding_table"

TOKENS = (TensorSpec("output_ids", "INT32", (-1, -1)), TensorSpec("sequence_length", "INT32"))
# Ours, so that text state begins and ends with its stream; TensorRT-LLM's backend sends neither.
STREAM_MARKS = (TensorSpec("is_first", "BOOL"), TensorSpec("is_final", "BOOL"))


def frames_spec(image_size: int) -> TensorSpec:
    """Frames into the vision graph: uint8 [F, 3, S, S], resized."""
    return TensorSpec("frames", "UINT8", (-1, 3, image_size, image_size))


def visual_embeds_spec(hidden: int, dtype: Dtype) -> TensorSpec:
    """The vision graph's output: [V, hidden]; dtype: the bundle's."""
    return TensorSpec("visual_embeds", dtype.name, (-1, hidden))


def llm_inputs(hidden: int, dtype: Dtype) -> tuple[TensorSpec, ...]:
    """Inputs of the LLM step. `stop` with the id of a request ends it, so a prompt is optional."""
    required = {"input_lengths", "request_output_len"}
    prompt = tuple(spec._replace(optional=spec.name not in required) for spec in PROMPT)
    table = visual_embeds_spec(hidden, dtype)._replace(name=PROMPT_TABLE, optional=True)
    return (
        *prompt,
        table,
        PROMPT_VOCAB_SIZE,
        *ANSWER_INPUTS.values(),
        STOP,
    )


LLM_OUTPUTS = (*TOKENS, *TOKEN_COUNTS, *STREAM_MARKS)

# Between `dycoke_bls` and our LLM step an error is a response like others, [code, message]. Servers
# before 2.57 lose the address of an error on its way to a model that called another: its caller
# waits for ever, or another of its calls gets it (python_backend r24.10, infer_response.cc,
# SaveToSharedMemory: `id` is set for responses without an error only; mended by its #398).
ERRORS_AS_OUTPUT = optional("errors_as_output", "BOOL")
ERROR = TensorSpec("error", "BYTES", (2,))
