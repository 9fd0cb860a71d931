"""Two decoder layers with our selection in ONNX's own operators: equal to core/, and compiled.

A study (docs/plugin-free.md), no part of the product. ONNX Runtime runs the graph; NVIDIA's
compiler builds it; nothing runs the engine.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from dycoke_trt.core.attention import masked_attention
from dycoke_trt.core.decisions import GateMode
from dycoke_trt.core.reselection import (
    attended,
    block_keep_table,
    gate,
    prunable_blocks,
    select_blocks,
    visual_scores,
)
from dycoke_trt.engines.rtx_compiler import compile_graph
from dycoke_trt.runtime.tensorrt_library import TENSORRT_RTX
from dycoke_trt.tests.export.decoder_graph import LAYERS, DecoderGraph, Shape
from onnx import TensorProto

SHAPE = Shape()
COMPACT = 7  # blocks: as many as any sequence below keeps


def inputs(seed: int) -> dict[str, Any]:
    """A step of three sequences: the first step, one like the step before, and one unlike it."""
    s, random = SHAPE, np.random.default_rng(seed)
    position = random.integers(40, s.tokens, s.sequences)
    visual = np.zeros((s.sequences, s.tokens), bool)
    for row in range(s.sequences):
        visual[row, random.integers(1, 6) : random.integers(30, 38)] = True
    cache = (s.sequences, s.kv_heads, s.tokens, s.head_dim)
    return {
        "x": random.standard_normal((s.sequences, 1, s.hidden)).astype(np.float32),
        "position": position,
        "visual": visual,
        "first": np.array([True, False, False]),
        "previous_scores": np.zeros((s.sequences, s.tokens), np.float32),
        "previous_keep": random.random((s.sequences, s.blocks)) < 0.7,
        **{
            f"{part}{i}": random.standard_normal(cache).astype(np.float32)
            for i in range(LAYERS)
            for part in "kv"
        },
    }


def expected(weights: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The same step by core/: selection, gate and attention of this project."""
    s = SHAPE
    w = {name: torch.from_numpy(value) for name, value in weights.items()}
    t = {name: torch.from_numpy(value) for name, value in given.items()}
    x, position, rows = t["x"][:, 0], t["position"], torch.arange(s.sequences)
    lengths = position + 1
    valid = torch.arange(s.tokens) < lengths[:, None]
    frequency = 1e4 ** (-torch.arange(s.head_dim // 2, dtype=torch.float64) * 2 / s.head_dim)
    angle = (position[:, None] * frequency).float()
    found: dict[str, Any] = {}

    def heads(name: str, i: int, count: int) -> torch.Tensor:
        made = x @ w[f"{name}{i}/weight"] + w[f"{name}{i}/bias"]
        return made.view(s.sequences, count, s.head_dim)

    def rotated(value: torch.Tensor) -> torch.Tensor:
        low, high = value.chunk(2, -1)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

    mask = valid
    for i in range(LAYERS):
        q, k = rotated(heads("q", i, s.heads)), rotated(heads("k", i, s.kv_heads))
        caches = {"k": t[f"k{i}"].clone(), "v": t[f"v{i}"].clone()}
        for part, new in (("k", k), ("v", heads("v", i, s.kv_heads))):
            caches[part][rows, :, position] = new
            found[f"{part}{i}/new"] = caches[part]
        keys, values = (caches[part].transpose(1, 2) for part in "kv")
        if i == 0:
            scores = visual_scores(q, k, keys, lengths, t["visual"])
            prunable = prunable_blocks(t["visual"], lengths, s.block)
            chosen = select_blocks(scores, prunable, block_keep_table(s.p, s.blocks))
            decision = gate(
                scores, t["previous_scores"], t["first"], GateMode.REUSE, s.threshold
            ).decision
            keep = attended(decision, chosen, t["previous_keep"])
            found |= {"scores": scores, "keep": keep, "decision": decision}
        else:
            mask = valid & keep.repeat_interleave(s.block, 1)
        out = masked_attention(q, keys, values, mask).view(s.sequences, -1)
        x = x + out @ w[f"o{i}/weight"]
        open_ = torch.nn.functional.silu(x @ w[f"gate{i}/weight"])
        x = x + (open_ * (x @ w[f"up{i}/weight"])) @ w[f"down{i}/weight"]
    return found | {"y": x[:, None]}


@pytest.mark.parametrize("compact", [None, COMPACT])
def test_the_graph_is_the_step_of_core(tmp_path: Path, compact: int | None) -> None:
    graph, path = DecoderGraph(SHAPE), tmp_path / "decoder.onnx"
    graph.build(path, compact=compact)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    decisions = set()
    for seed in range(8):
        given = inputs(seed)
        # The second sequence has nearly the scores of the step before: its selection is reused.
        scores = expected(graph.weights, given)["scores"].numpy()
        given["previous_scores"][1] = scores[1] * 1.01
        given["previous_scores"][2] = scores[2, ::-1]
        given["previous_keep"] |= ~prunable_blocks(
            torch.from_numpy(given["visual"]), torch.from_numpy(given["position"]) + 1, SHAPE.block
        ).numpy()
        if compact is not None:
            given["previous_keep"][:, 0] = True
            given["previous_keep"][:, 2] = False
        wanted = expected(graph.weights, given)
        decisions |= set(wanted["decision"].tolist())
        found = dict(zip(names, session.run(names, given), strict=True))
        assert found["keep"].tolist() == wanted["keep"].tolist()
        for name in names:
            want = wanted[name].numpy()
            np.testing.assert_allclose(found[name], want, rtol=1e-4, atol=1e-5, err_msg=name)
    assert decisions == {1, 2}  # reused and selected anew


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="needs TensorRT for RTX")
@pytest.mark.parametrize("compact", [None, COMPACT])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_nvidias_compiler_builds_it(tmp_path: Path, dtype: int, compact: int | None) -> None:
    """TensorRT for RTX 1.7.1.116: TensorScatter, RotaryEmbedding, Attention and the selection."""
    path = tmp_path / "decoder.onnx"
    DecoderGraph(SHAPE, dtype).build(path, compact=compact)
    engine = compile_graph(TENSORRT_RTX.load(), path, [89], [])
    assert {name for name, (mode, _) in engine.io.items() if mode == "Output"} >= {"y", "keep"}
    assert engine.plan.nbytes > 10_000
