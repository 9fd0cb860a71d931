"""A decode step of two decoder layers with DyCoke's selection, in operators of ONNX alone.

What docs/plugin-free.md is about: opset 24's TensorScatter keeps the cache, RotaryEmbedding and
Attention do the rest, and the selection is arithmetic. Layer 0 scores (l = 1) and attends to
everything; layer 1 attends to the kept blocks, by a mask or gathered into a shorter cache.

Names: S sequences, Hq and Hkv heads of D, T cached tokens in M blocks of B.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR = 24, 10
LAYERS = 2


@dataclass(frozen=True)
class Shape:
    sequences: int = 3
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    ffn: int = 96
    tokens: int = 64
    block: int = 8
    p: float = 0.7
    threshold: float = 0.9

    @property
    def blocks(self) -> int:
        return self.tokens // self.block


class DecoderGraph:
    """Collects nodes; `weights` are the same arrays for whoever computes the step otherwise."""

    def __init__(self, shape: Shape, dtype: int = TensorProto.FLOAT, seed: int = 0) -> None:
        self.shape, self.dtype = shape, dtype
        self.random = np.random.default_rng(seed)
        self.weights: dict[str, Any] = {}
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: Any, dtype: int | None = None) -> str:
        tensor = numpy_helper.from_array(np.asarray(value), name)
        if dtype is not None and dtype != TensorProto.FLOAT:
            tensor = helper.make_tensor(name, dtype, np.shape(value), np.ravel(value))
        self.initializers.append(tensor)
        return name

    def weight(self, name: str, *size: int) -> str:
        value = self.random.standard_normal(size).astype(np.float32) * size[0] ** -0.5
        self.weights[name] = value
        return self.constant(name, value, self.dtype)

    def cast(self, name: str, value: str, dtype: int) -> str:
        return self.node("Cast", name, value, to=dtype)

    def reshape(self, name: str, value: str, *size: int) -> str:
        return self.node("Reshape", name, value, self.constant(f"{name}/shape", np.array(size)))

    def build(self, path: Path, *, compact: int | None = None) -> None:
        """Writes the model. compact: how many blocks layer 1 reads, at least as many as any
        sequence keeps; None masks the whole cache instead."""
        s = self.shape
        self.node("Identity", "x0", "x")
        keep = ""
        for i in range(LAYERS):
            q, k, v = self.projections(i)
            if i == 0:
                valid = self.valid_tokens()
                keep = self.selection(q, k, valid)
                attended = self.attention(i, q, k, v, valid)
            elif compact is None:
                attended = self.attention(i, q, k, v, self.kept_tokens(keep, valid))
            else:
                k, v, mask = self.compacted(k, v, keep, valid, compact)
                attended = self.attention(i, q, k, v, mask)
            self.feed_forward(i, attended)
        self.node("Identity", "y", f"x{LAYERS}")
        cache = [s.sequences, s.kv_heads, s.tokens, s.head_dim]
        caches = [f"{part}{i}" for i in range(LAYERS) for part in "kv"]
        values = {
            "x": (self.dtype, [s.sequences, 1, s.hidden]),
            "position": (TensorProto.INT64, [s.sequences]),
            "visual": (TensorProto.BOOL, [s.sequences, s.tokens]),
            "first": (TensorProto.BOOL, [s.sequences]),
            "previous_scores": (TensorProto.FLOAT, [s.sequences, s.tokens]),
            "previous_keep": (TensorProto.BOOL, [s.sequences, s.blocks]),
            **dict.fromkeys(caches, (self.dtype, cache)),
        }
        results = {
            "y": (self.dtype, [s.sequences, 1, s.hidden]),
            "scores": (TensorProto.FLOAT, [s.sequences, s.tokens]),
            "keep": (TensorProto.BOOL, [s.sequences, s.blocks]),
            **{f"{name}/new": (self.dtype, cache) for name in caches},
        }
        before, after = (
            [helper.make_tensor_value_info(n, t, size) for n, (t, size) in group.items()]
            for group in (values, results)
        )
        graph = helper.make_graph(self.nodes, "decoder", before, after, self.initializers)
        imports = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=IR)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)

    def projections(self, i: int) -> tuple[str, str, str]:
        """Query [S,Hq,1,D], and the caches with the fed token's key and value in their places."""
        s = self.shape
        if i == 0:
            self.constant("axis/rows", np.array([1]))
            self.node("Unsqueeze", "position/row", "position", "axis/rows")
            angles = np.arange(s.tokens)[:, None] * 1e4 ** (
                -np.arange(s.head_dim // 2) * 2 / s.head_dim
            )
            self.constant("cos", np.cos(angles).astype(np.float32), self.dtype)
            self.constant("sin", np.sin(angles).astype(np.float32), self.dtype)
        found = {}
        for part, heads in (("q", s.heads), ("k", s.kv_heads), ("v", s.kv_heads)):
            weight = self.weight(f"{part}{i}/weight", s.hidden, heads * s.head_dim)
            bias = self.weight(f"{part}{i}/bias", heads * s.head_dim)
            y = self.node("MatMul", f"{part}{i}/product", f"x{i}", weight)
            y = self.node("Add", f"{part}{i}/sum", y, bias)
            y = self.reshape(f"{part}{i}/heads", y, s.sequences, heads, 1, s.head_dim)
            if part != "v":
                y = self.node(
                    "RotaryEmbedding", f"{part}{i}/rotated", y, "cos", "sin", "position/row"
                )
            if part != "q":
                new = f"{part}{i}/new"
                self.node("TensorScatter", new, f"{part}{i}", y, "position", axis=2)
                y = new
            found[part] = y
        return found["q"], found["k"], found["v"]

    def valid_tokens(self) -> str:
        """bool [S,T]: cached up to and with the fed token."""
        order = self.constant("tokens", np.arange(self.shape.tokens)[None])
        return self.node("LessOrEqual", "valid", order, "position/row")

    def attention(self, i: int, q: str, k: str, v: str, mask: str) -> str:
        axes = self.constant(f"attention{i}/axes", np.array([1, 2]))
        mask = self.node("Unsqueeze", f"attention{i}/mask", mask, axes)
        return self.node("Attention", f"attention{i}", q, k, v, mask)

    def selection(self, q: str, k: str, valid: str) -> str:
        """bool [S,M]: blocks that layers from l on attend to; core/reselection.py, gate `reuse`."""
        s = self.shape
        group = s.heads // s.kv_heads
        # Scores: softmax over the context, mean over heads, visual tokens alone.
        q32 = self.cast("score/q", q, TensorProto.FLOAT)
        k32 = self.cast("score/k", k, TensorProto.FLOAT)
        grouped = self.reshape("score/grouped", q32, s.sequences, s.kv_heads, group, s.head_dim)
        scale = self.constant("score/scale", np.float32(s.head_dim**-0.5))
        grouped = self.node("Mul", "score/scaled", grouped, scale)
        keys = self.node("Transpose", "score/keys", k32, perm=[0, 1, 3, 2])
        logits = self.node("MatMul", "score/logits", grouped, keys)
        axes = self.constant("score/axes", np.array([1, 2]))
        seen = self.node("Unsqueeze", "score/seen", valid, axes)
        least = self.constant("score/least", np.float32(-1e30))
        logits = self.node("Where", "score/masked", seen, logits, least)
        shares = self.node("Softmax", "score/shares", logits, axis=-1)
        mean = self.node("ReduceMean", "score/mean", shares, axes, keepdims=0)
        zero = self.constant("zero", np.float32(0))
        scores = self.node("Where", "scores", "visual", mean, zero)
        # Gate: the cosine with the step before.
        last = self.constant("last", np.array([-1]))
        before = self.node("Where", "gate/before", self.column("first"), zero, "previous_scores")
        dot = self.node(
            "ReduceSum", "gate/dot", self.node("Mul", "gate/product", scores, before), last
        )
        norms = self.node(
            "Mul",
            "gate/norms",
            self.node("ReduceL2", "gate/norm", scores, last),
            self.node("ReduceL2", "gate/norm_before", before, last),
        )
        bound = self.node(
            "Mul", "gate/bound", norms, self.constant("gate/least", np.float32(s.threshold))
        )
        stable = self.node("GreaterOrEqual", "gate/near", dot, bound)
        some = self.node("Greater", "gate/some", norms, zero)
        stable = self.node("And", "gate/similar", stable, some)
        stable = self.node(
            "And", "gate/stable", stable, self.node("Not", "gate/later", self.column("first"))
        )
        # Blocks of visual tokens only, before the tail; their best by rank, ties to the lowest.
        by_block = self.reshape(
            "select/visual",
            self.cast("select/ones", "visual", TensorProto.INT32),
            s.sequences,
            s.blocks,
            s.block,
        )
        marks = self.node("ReduceMin", "select/marks", by_block, last, keepdims=0)
        all_visual = self.cast("select/all", marks, TensorProto.BOOL)
        tail = self.node(
            "Div", "select/tail", "position/row", self.constant("block", np.array(s.block))
        )
        blocks = self.constant("blocks", np.arange(s.blocks)[None])
        prunable = self.node(
            "And", "select/prunable", all_visual, self.node("Less", "select/before", blocks, tail)
        )
        totals = self.node(
            "ReduceSum",
            "select/totals",
            self.reshape("select/by_block", scores, s.sequences, s.blocks, s.block),
            last,
            keepdims=0,
        )
        totals = self.node(
            "Where",
            "select/candidates",
            prunable,
            totals,
            self.constant("select/none", np.float32(-1)),
        )
        mine = self.node("Unsqueeze", "select/mine", totals, last)
        others = self.node(
            "Unsqueeze", "select/others", totals, self.constant("axis/others", np.array([1]))
        )
        better = self.node("Greater", "select/better", others, mine)
        order = np.arange(s.blocks)
        lower = self.constant("select/lower", order[None, None, :] < order[None, :, None])
        tied = self.node(
            "And", "select/tied", self.node("Equal", "select/equal", others, mine), lower
        )
        ahead = self.cast(
            "select/ahead", self.node("Or", "select/any", better, tied), TensorProto.INT32
        )
        rank = self.node("ReduceSum", "select/rank", ahead, last, keepdims=0)
        number = self.node(
            "ReduceSum",
            "select/number",
            self.cast("select/count", prunable, TensorProto.INT32),
            last,
        )
        table = [n - int(s.p * n + 1e-9) for n in range(s.blocks + 1)]
        count = self.node(
            "Gather",
            "select/kept",
            self.constant("select/table", np.array(table, np.int32)),
            number,
            axis=0,
        )
        best = self.node("Less", "select/best", rank, count)
        chosen = self.node("Or", "select/chosen", best, self.node("Not", "select/fixed", prunable))
        reused = self.node("And", "keep/reused", stable, "previous_keep")
        new = self.node("And", "keep/new", self.node("Not", "keep/moved", stable), chosen)
        return self.node("Or", "keep", reused, new)

    def column(self, name: str) -> str:
        """[S] -> [S,1], once."""
        made = f"{name}/column"
        if not any(node.name == made for node in self.nodes):
            self.node("Unsqueeze", made, name, "axis/rows")
        return made

    def kept_tokens(self, keep: str, valid: str) -> str:
        """bool [S,T] of bool [S,M]."""
        s = self.shape
        wide = self.node("Unsqueeze", "kept/blocks", keep, "last")
        sizes = self.constant("kept/sizes", np.array([s.sequences, s.blocks, s.block]))
        wide = self.node("Expand", "kept/wide", wide, sizes)
        tokens = self.reshape("kept/tokens", wide, s.sequences, s.tokens)
        return self.node("And", "kept/valid", tokens, valid)

    def compacted(self, k: str, v: str, keep: str, valid: str, blocks: int) -> tuple[str, str, str]:
        """The kept blocks of both caches, first, in order: [S,Hkv,blocks*B,D]; their mask."""
        s = self.shape
        # Kept blocks have the largest keys, the first of them the largest, so TopK orders them.
        place = self.constant("compact/place", np.arange(s.blocks, 0, -1, dtype=np.int32)[None])
        bonus = self.constant("compact/bonus", np.int32(s.blocks))
        kept = self.cast("compact/kept", keep, TensorProto.INT32)
        key = self.node("Add", "compact/key", place, self.node("Mul", "compact/first", kept, bonus))
        number = self.constant("compact/number", np.array([blocks]))
        top = helper.make_node(
            "TopK", [key, number], ["compact/top", "compact/index"], name="compact/topk"
        )
        self.nodes.append(top)
        index = self.node("Unsqueeze", "compact/column", "compact/index", "last")
        inside = self.constant("compact/inside", np.arange(s.block)[None, None])
        first = self.node("Mul", "compact/begin", index, "block")
        tokens = self.node("Add", "compact/tokens", first, inside)
        tokens = self.reshape("compact/flat", tokens, s.sequences, blocks * s.block)
        mask = self.node(
            "GatherElements",
            "compact/mask",
            self.cast("compact/ints", self.kept_tokens(keep, valid), TensorProto.INT32),
            tokens,
            axis=1,
        )
        mask = self.cast("compact/bool", mask, TensorProto.BOOL)
        wide = self.reshape("compact/row", tokens, s.sequences, 1, blocks * s.block, 1)
        sizes = [s.sequences, s.kv_heads, blocks * s.block, s.head_dim]
        wide = self.node(
            "Expand", "compact/wide", wide, self.constant("compact/sizes", np.array(sizes))
        )
        shorter = [
            self.node("GatherElements", f"compact/{name}", cache, wide, axis=2)
            for name, cache in (("k", k), ("v", v))
        ]
        return shorter[0], shorter[1], mask

    def feed_forward(self, i: int, attended: str) -> None:
        s = self.shape
        y = self.reshape(f"o{i}/flat", attended, s.sequences, 1, s.heads * s.head_dim)
        y = self.node(
            "MatMul", f"o{i}", y, self.weight(f"o{i}/weight", s.heads * s.head_dim, s.hidden)
        )
        x = self.node("Add", f"x{i}/middle", f"x{i}", y)
        gate = self.node("MatMul", f"gate{i}", x, self.weight(f"gate{i}/weight", s.hidden, s.ffn))
        up = self.node("MatMul", f"up{i}", x, self.weight(f"up{i}/weight", s.hidden, s.ffn))
        open_ = self.node(
            "Mul", f"gate{i}/silu", gate, self.node("Sigmoid", f"gate{i}/sigmoid", gate)
        )
        y = self.node(
            "MatMul",
            f"down{i}",
            self.node("Mul", f"ffn{i}", open_, up),
            self.weight(f"down{i}/weight", s.ffn, s.hidden),
        )
        self.node("Add", f"x{i + 1}", x, y)
