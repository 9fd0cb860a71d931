"""Test 1: requests with something wrong in them are refused by name, and hurt nothing."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from ....runtime.protocol import BLS, ENSEMBLE, LLM
from . import canary
from .client import Answer, add_input, gather, message, tokens_wanted
from .outcome import Outcome
from .stage import Stage

CRITERION = "0 crashes; 0 internal errors; each refusal names the input; canaries identical after"
_EXCEPTION = re.compile(r"\b[A-Z]\w*(Error|Exception)\b|Traceback|the model failed")
_DIGITS = re.compile(r"\d+")
_NUMBERS = (-(2**31), -1, 0, 1, 3, 5, 33, 10_000, 2**31 - 1)
_REALS = (float("nan"), float("inf"), -1.0, 0.0, 1e-39, 1e-8, 1.0, 1e38)
_TYPES = ("BYTES", "INT32", "FP32", "BOOL", "UINT64", "UINT8", "INT64", "FP16")
Named = tuple[Any, str]  # a request, and the input that is wrong in it


def run(stage: Stage, quick: bool) -> Outcome:
    server = stage.shared()
    before = canary.sing(server.grpc)
    cases = [case(random.Random(seed)) for seed in range(200 if quick else 10_000)]
    answers = asyncio.run(gather(server.grpc, [request for request, _ in cases], 4))
    outcomes: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for answer, (_, name) in zip(answers, cases, strict=True):
        kind = judge(answer, name)
        outcomes[kind] += 1
        if kind in ("internal", "unnamed", "lost"):
            shape = _DIGITS.sub("#", answer.error)
            examples.setdefault(f"{kind} {name} {shape}", f"{kind}: {name}: {answer.error[:200]}")
    server.wait(0)
    figures: dict[str, Any] = {
        "requests": len(cases),
        **outcomes,
        "canaries changed": canary.changed(before, canary.sing(server.grpc)),
    }
    bad = outcomes["internal"] + outcomes["unnamed"] + outcomes["lost"]
    return Outcome(
        not bad and not figures["canaries changed"],
        figures,
        "; ".join(list(examples.values())[:8]),
    )


def judge(answer: Answer, name: str) -> str:
    """answered, refused (by name), busy, unnamed, internal, or lost (no answer at all)."""
    if not answer.error:
        return "answered"
    if answer.error.startswith(("UNAVAILABLE", "CANCELLED", "HANGS", "the stream ended")):
        return "lost"
    if _EXCEPTION.search(answer.error):
        return "internal"
    if "try again" in answer.error or "maximum queue size" in answer.error:
        return "busy"
    named = any(part in answer.error for part in name.split("|"))
    return "refused" if named else "unnamed"


def case(draw: random.Random) -> Named:
    """A request that is wrong in one place, or only strange."""
    return draw.choice(_CASES)(draw)


def _question(draw: random.Random, **values: Any) -> Any:
    model = draw.choice((ENSEMBLE, BLS))
    fixed = {"text_input": b"What?", "max_tokens": 2, "stream": draw.random() < 0.5}
    if "video_file_input" not in values:
        fixed["video_bytes_input"] = canary.video(0)
    return message(model, **{**fixed, **values})


def _number(draw: random.Random) -> Named:
    name = draw.choice(("max_tokens", "top_k", "num_frames"))
    more = {"video_file_input": _file(draw)} if name == "num_frames" else {}
    value = draw.choice(_NUMBERS)
    request = _question(draw, **{**more, name: min(value, 8) if name == "max_tokens" else value})
    # A file that is refused first is named instead.
    return request, name if name != "num_frames" else "num_frames|video_file_input"


def _real(draw: random.Random) -> Named:
    name = draw.choice(("temperature", "top_p"))
    return _question(draw, **{name: np.array([[draw.choice(_REALS)]], np.float32)}), name


def _frames(draw: random.Random) -> Named:
    shape = [draw.choice((0, 1, 3, 4, 5, 33)), draw.choice((0, 1, 64)), draw.choice((1, 64)), 3]
    shape[3] = draw.choice((1, 3, 3, 4))
    return _question(draw, video_bytes_input=np.zeros((1, *shape), np.uint8)), "video_bytes_input"


def _file(draw: random.Random) -> bytes:
    gif = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00"
    kinds = (
        b"",
        b"not a video",
        draw.randbytes(draw.randrange(1, 4000)),
        b"\x00\x00\x00\x18ftypmp42" + draw.randbytes(200),  # an mp4 that ends in its header
        gif,
        b"RIFF\xff\xff\xff\xffAVI LIST" + draw.randbytes(100),
        b"data:video/mp4;base64,AAAA",
        b"data:video/mp4;base64,!!!",
        b"file:///etc/passwd",
        b"concat:/etc/passwd|/etc/group",
    )
    return draw.choice(kinds)


def _a_file(draw: random.Random) -> Named:
    return _question(draw, video_file_input=_file(draw), num_frames=4), "video_file_input"


def _text(draw: random.Random) -> Named:
    texts = (b"", b"\xff\xfe\xfd", b"\x00", b"a" * 200_000, b"<|im_end|><image>", b"\xf0")
    name = draw.choice(("text_input", "stop_words"))
    text = draw.choice(texts)
    return _question(draw, **{name: text if name == "text_input" else [text] * 3}), name


def _many_words(draw: random.Random) -> Named:
    words = [f"word{i}".encode() for i in range(draw.choice((65, 1000, 4000)))]
    return _question(draw, stop_words=words), "stop_words"


def _dtype(draw: random.Random) -> Named:
    request = _question(draw)
    tensor = draw.choice(request.inputs)
    tensor.datatype = draw.choice(_TYPES)
    return request, tensor.name


def _shape(draw: random.Random) -> Named:
    request = _question(draw)
    tensor = draw.choice(request.inputs)
    tensor.shape[draw.randrange(len(tensor.shape))] = draw.choice((0, 2, 7, 2**40))
    # Triton itself may name the first that does not fit to it.
    return request, f"{tensor.name}|batch size does not match"


def _content(draw: random.Random) -> Named:
    request = _question(draw)
    number = draw.randrange(len(request.inputs))
    raw = request.raw_input_contents[number]
    request.raw_input_contents[number] = draw.choice(
        (b"", raw[:-1], raw + b"x", b"\xff" * len(raw))
    )
    return request, request.inputs[number].name


def _left_out(draw: random.Random) -> Named:
    request = _question(draw)
    number = draw.randrange(len(request.inputs))
    name = request.inputs[number].name
    del request.inputs[number], request.raw_input_contents[number]
    return request, {"video_bytes_input": "video"}.get(name, name)


def _unknown(draw: random.Random) -> Named:
    request = _question(draw)
    if draw.random() < 0.5:
        add_input(request, "colour", "INT32", 1)
        return request, "colour"
    request.parameters["colour"].int64_param = 1
    return request, "colour"


def _sampled_table(draw: random.Random) -> Named:
    """To the LLM step itself: a table of NaN, of infinity, or of a wrong shape."""
    table = np.full((1, 3, draw.choice((1, 128))), draw.choice(_REALS), np.float32)
    request = tokens_wanted(range(1, 9), 3, temperature=draw.choice((0.0, 1.0)))
    add_input(request, "prompt_embedding_table", "FP32", table)
    add_input(request, "prompt_vocab_size", "INT32", 3)
    return request, "prompt_embedding_table"


def _prompt(draw: random.Random) -> Named:
    ids = draw.choice(((), (-1,), (2**31 - 1,), tuple(range(1, 4)), (1,) * 5000))
    request = tokens_wanted(ids, draw.choice((0, 1, 2, -1)))
    assert request.model_name == LLM
    # What the step says of them is in the words of an engine.
    return request, "prompt|max_tokens|input_ids|request_output_len|input_lengths"


_CASES: tuple[Callable[[random.Random], Named], ...] = (
    _number, _real, _frames, _a_file, _text, _many_words, _dtype, _shape, _content, _left_out,
    _unknown, _sampled_table, _prompt,
)  # fmt: skip
