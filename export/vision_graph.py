"""The graph from frames to visual embeddings: tower, projector, pooling, TTM, newline.

Shapes: B videos of F frames, F a multiple of 4, W = F/4 windows each; P patches, N tokens per frame
after pooling, d the tower's width, D the LLM's. Weights and matrix products are in the graph's
dtype; LayerNorm, softmax, pooling and TTM's cosines compute in fp32.

Only operators and types of `export/tensorrt_operators.py` are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.errors import DyCokeError
from ..core.ttm import SIMILARITY_GRID
from .model_config import VisionConfig
from .onnx_graph import GraphBuilder
from .preprocessing import PixelScale

_INDEX_BITS = 10  # beside the 21 bits of a grid similarity in an int32; below TopK's limit too
Weights = Callable[[str], Tensor]


class VisionGraph:
    """Adds the stages to a builder, one method per stage.

    weights: canonical name -> tensor in the graph's dtype. `layer_outputs` fills with the values
    that a layer-by-layer comparison looks at, in order.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        weights: Weights,
        vision: VisionConfig,
        hidden: int,
        dtype: torch.dtype,
    ) -> None:
        self.graph = graph
        self.weights = weights
        self.vision = vision
        self.hidden = hidden
        self.dtype = dtype
        self.layer_outputs: list[str] = []

    def pixels(self, frames: str, scale: PixelScale) -> str:
        """uint8 [B,F,3,H,W] -> normalised [B*F,3,S,S], S the part that whole patches cover."""
        g, dims, size = self.graph, self.vision.dims, self.vision.image_size
        factor, offset = scale.affine()
        x = g.cast("pixels/float", frames, torch.float32)
        x = g.reshape("pixels/flat", x, [-1, 3, size, size])
        if (covered := dims.patches_per_side * dims.patch) < size:  # 378 of 384
            bounds = ([0, 0], [covered, covered], [2, 3])
            names = zip(("starts", "ends", "axes"), bounds, strict=True)
            edges = [g.constant(f"pixels/{n}", torch.tensor(v)) for n, v in names]
            x = g.node("Slice", "pixels/covered", x, *edges)
        x = g.node("Mul", "pixels/scaled", x, g.constant("pixels/factor", factor))
        x = g.node("Add", "pixels/normalised", x, g.constant("pixels/offset", offset))
        return self._to_dtype("pixels/cast", x)

    def tower(self, pixels: str) -> str:
        """[B*F,3,S,S] -> [B*F,P,d]: the layers used, no post-LayerNorm."""
        g, dims = self.graph, self.vision.dims
        base = "vision.embeddings."
        # A convolution with stride = kernel, as a matrix product: opset 20 has no Conv in bf16.
        side, patch = dims.patches_per_side, dims.patch
        x = g.reshape("tower/embeddings/split", pixels, [-1, 3, side, patch, side, patch])
        x = g.node("Transpose", "tower/embeddings/by_patch", x, perm=[0, 2, 4, 1, 3, 5])
        x = g.reshape("tower/embeddings/flat", x, [-1, side * side, 3 * patch * patch])
        kernel = self.weights(f"{base}patch_embedding.weight").flatten(1).t().contiguous()
        kernel_name = g.constant(f"{base}patch_embedding.weight", kernel)
        x = g.node("MatMul", "tower/embeddings/product", x, kernel_name)
        bias = self._weight(f"{base}patch_embedding.bias")
        x = g.node("Add", "tower/embeddings/patches", x, bias)
        position = self._weight(f"{base}position_embedding.weight")
        x = self._record(g.node("Add", "tower/embeddings/output", x, position))
        for i in range(dims.layers):
            x = self._record(self._layer(f"tower/layers.{i}", f"vision.encoder.layers.{i}.", x))
        return x

    def projector(self, x: str) -> str:
        """[B*F,P,d] -> [B*F,P,D]: linear, exact GELU, linear."""
        x = self._linear("projector/linear_1", "projector.linear_1", x)
        x = self.graph.node("Gelu", "projector/gelu", x, approximate="none")
        return self._record(self._linear("projector/linear_2", "projector.linear_2", x))

    def pooling(self, x: str) -> str:
        """[B*F,P,D] -> [B*F,N,D]: bilinear to half the side, as one constant matrix.

        In fp32 whatever the dtype: rounded coefficients would no longer sum to one. A product that
        stands alone between two casts is computed in the narrow type by TensorRT for RTX 1.7.1,
        matrix included, though the network is strongly typed; the addition of zero prevents it.
        """
        g = self.graph
        matrix = g.constant("pooling/matrix", pooling_matrix(self.vision.dims.patches_per_side))
        if self.dtype == torch.float32:
            return self._record(g.node("MatMul", "pooling/output", matrix, x))
        x = g.cast("pooling/float", x, torch.float32)
        x = g.node("Add", "pooling/float/kept", x, g.constant("pooling/zero", torch.tensor(0.0)))
        x = g.node("MatMul", "pooling/float/output", matrix, x)
        return self._record(self._to_dtype("pooling/output", x))

    def ttm(self, x: str, keep: int, batch: str, rows_output: str | None = None) -> str:
        """[B*F,N,D] -> survivors [B,M,D], by the paper's rule as core/ttm.py has it.

        keep: tokens kept of each compared frame, 0 <= keep < N. rows_output: name for one more
        value, the survivors' rows as int64 [B,M], indices into the video's F*N rows.
        """
        g, n = self.graph, self.vision.dims.tokens_per_frame
        # By video first: frames that fill no window fail here and do not join a neighbour's.
        sizes = g.constant("ttm/by_video/sizes", torch.tensor([-1, 4, n, self.hidden]))
        shape = g.node("Concat", "ttm/by_video/shape", batch, sizes, axis=0)
        windows = g.node("Reshape", "ttm/by_video", x, shape)
        windows = g.reshape("ttm/windows", windows, [-1, 4, n, self.hidden])
        shape = g.node("Shape", "ttm/windows/shape_of", windows)
        zero, one = (g.constant(f"ttm/{i}", torch.tensor(i)) for i in (0, 1))
        count = g.node("Gather", "ttm/window_count", shape, zero, axis=0)
        index = g.node("Range", "ttm/window_index", zero, count, one)
        stride = g.constant("ttm/window_rows", torch.tensor(4 * n))
        base = g.reshape("ttm/base", g.node("Mul", "ttm/base/flat", index, stride), [-1, 1])
        first = g.constant("ttm/first", torch.arange(n).view(1, n))
        rows = g.node("Add", "ttm/rows/first", base, first)
        if keep:
            kept = self._least_similar(windows, keep)
            offset = g.constant("ttm/frame_rows", (n * torch.arange(1, 4)).view(1, 3, 1))
            kept = g.node("Add", "ttm/rows/in_window", kept, offset)
            kept = g.reshape("ttm/rows/kept", kept, [-1, 3 * keep])
            kept = g.node("Add", "ttm/rows/others", base, kept)
            rows = g.node("Concat", "ttm/rows", rows, kept, axis=1)
        flat = g.reshape("ttm/tokens", x, [-1, self.hidden])
        merged = g.node("Gather", "ttm/gathered", flat, rows, axis=0)
        if rows_output is not None:
            # Rows so far count through the batch; a video's first survivor is always its row 0.
            sizes = g.constant(f"{rows_output}/sizes", torch.tensor([-1]))
            shape = g.node("Concat", f"{rows_output}/shape", batch, sizes, axis=0)
            by_video = g.node("Reshape", f"{rows_output}/by_video", rows, shape)
            head = g.constant(f"{rows_output}/head", torch.tensor([0]))
            start = g.node("Gather", f"{rows_output}/start", by_video, head, axis=1)
            g.node("Sub", rows_output, by_video, start)
        return self._record(self.per_video("ttm/output", merged, batch, self.hidden))

    def newline(self, x: str, batch: str, output: str) -> str:
        """[B,M,D] -> [B,M+1,D]."""
        g = self.graph
        newline = g.constant("newline/weight", self.weights("image_newline").view(1, 1, -1))
        sizes = g.constant("newline/sizes", torch.tensor([1, self.hidden]))
        shape = g.node("Concat", "newline/shape", batch, sizes, axis=0)
        expanded = g.node("Expand", "newline/expanded", newline, shape)
        return g.node("Concat", output, x, expanded, axis=1)

    def per_video(self, name: str, x: str, batch: str, width: int) -> str:
        """[anything, width] -> [B, rows per video, width]."""
        g = self.graph
        sizes = g.constant(f"{name}/sizes", torch.tensor([-1, width]))
        return g.node("Reshape", name, x, g.node("Concat", f"{name}/shape", batch, sizes, axis=0))

    def _layer(self, name: str, source: str, x: str) -> str:
        """One pre-norm encoder layer on [B*F,P,d]."""
        g, v = self.graph, self.vision
        tokens, heads, width = v.dims.patches, v.heads, v.dims.hidden // v.heads
        attention = f"{name}/attention"
        normed = self._norm(f"{name}/norm1", f"{source}layer_norm1", x)
        split = {}
        for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            y = self._linear(f"{attention}/{part}", f"{source}self_attn.{part}_proj", normed)
            if part == "q":  # scaled before the product: fp16 has no room for the raw one
                scale = torch.tensor(1 / math.sqrt(width), dtype=self.dtype)
                y = g.node(
                    "Mul", f"{attention}/q/scaled", y, g.constant(f"{attention}/scale", scale)
                )
            y = g.reshape(f"{attention}/{part}/split", y, [0, tokens, heads, width])
            split[part] = g.node("Transpose", f"{attention}/{part}/heads", y, perm=perm)
        scores = g.node("MatMul", f"{attention}/scores", split["q"], split["k"])
        if self.dtype != torch.float32:
            scores = g.cast(f"{attention}/scores/float", scores, torch.float32)
        shares = g.node("Softmax", f"{attention}/softmax", scores, axis=-1)
        shares = self._to_dtype(f"{attention}/softmax/cast", shares)
        y = g.node("MatMul", f"{attention}/mixed", shares, split["v"])
        y = g.node("Transpose", f"{attention}/mixed/tokens", y, perm=[0, 2, 1, 3])
        y = g.reshape(f"{attention}/mixed/flat", y, [0, tokens, v.dims.hidden])
        y = self._linear(f"{attention}/out", f"{source}self_attn.out_proj", y)
        x = g.node("Add", f"{name}/residual", x, y)
        y = self._norm(f"{name}/norm2", f"{source}layer_norm2", x)
        y = self._linear(f"{name}/mlp/fc1", f"{source}mlp.fc1", y)
        y = g.node("Gelu", f"{name}/mlp/gelu", y, approximate="tanh" if v.tanh_gelu else "none")
        y = self._linear(f"{name}/mlp/fc2", f"{source}mlp.fc2", y)
        return g.node("Add", f"{name}/output", x, y)

    def _least_similar(self, windows: str, keep: int) -> str:
        """[B*W,4,N,D] -> int64 [B*W,3,keep]: the survivors of f1, f2, f3, in spatial order.

        A token's rank key is its similarity on the grid times 2^s plus its index, an int32. All
        keys differ: equal similarities go to the lowest index however TopK breaks ties.
        """
        g = self.graph
        key = self._rank_keys(self._grid_similarity(windows))
        _, kept = g.top_k("ttm/least_similar", key, keep)
        ascending, _ = g.top_k("ttm/in_order", g.cast("ttm/kept/int", kept, torch.int32), keep)
        return g.cast("ttm/kept", ascending, torch.int64)

    def _grid_similarity(self, windows: str) -> str:
        """[B*W,4,N,D] -> fp32 [B*W,3,N]: cosines in whole grid steps; 0 where a vector is zero."""
        g = self.graph
        pairs = {"a": [1, 2, 3], "b": [0, 0, 2]}  # f1 and f2 against f0, f3 against f2
        axis = g.constant("ttm/axis", torch.tensor([-1]))
        tokens, norms = [], []
        for side, frames in pairs.items():
            index = g.constant(f"ttm/{side}/frames", torch.tensor(frames))
            x = g.node("Gather", f"ttm/{side}", windows, index, axis=1)
            if self.dtype != torch.float32:
                x = g.cast(f"ttm/{side}/float", x, torch.float32)
            tokens.append(x)
            norms.append(g.node("ReduceL2", f"ttm/{side}/norm", x, axis, keepdims=0))
        norm = g.node("Mul", "ttm/norms", *norms)
        product = g.node("Mul", "ttm/product", *tokens)
        dot = g.node("ReduceSum", "ttm/dot", product, axis, keepdims=0)
        nothing, unit = (g.constant(f"ttm/{v}", torch.tensor(v)) for v in (0.0, 1.0))
        positive = g.node("Greater", "ttm/positive", norm, nothing)
        divisor = g.node("Where", "ttm/divisor", positive, norm, unit)
        ratio = g.node("Div", "ttm/ratio", dot, divisor)
        cosine = g.node("Where", "ttm/cosine", positive, ratio, nothing)
        steps = g.constant("ttm/steps", torch.tensor(1 / SIMILARITY_GRID))
        return g.node("Round", "ttm/grid", g.node("Mul", "ttm/scaled", cosine, steps))

    def _rank_keys(self, grid: str) -> str:
        """fp32 whole numbers up to 2^20 [..., N] -> int32 keys, by (similarity, index)."""
        g, n = self.graph, self.vision.dims.tokens_per_frame
        bits = (n - 1).bit_length()
        if bits > _INDEX_BITS:
            raise DyCokeError(f"{n} tokens per frame; TTM can be exported for {1 << _INDEX_BITS}")
        key = g.cast("ttm/grid/int", grid, torch.int32)
        factor = g.constant("ttm/key/factor", torch.tensor(1 << bits, dtype=torch.int32))
        index = g.constant("ttm/key/index", torch.arange(n, dtype=torch.int32))
        return g.node("Add", "ttm/key", g.node("Mul", "ttm/key/high", key, factor), index)

    def _norm(self, name: str, source: str, x: str) -> str:
        weight, bias = self._weight(f"{source}.weight"), self._weight(f"{source}.bias")
        epsilon = self.vision.layer_norm_eps
        # stash_type 1: mean and variance in fp32
        return self.graph.node(
            "LayerNormalization", name, x, weight, bias, axis=-1, epsilon=epsilon, stash_type=1
        )

    def _linear(self, name: str, source: str, x: str) -> str:
        g = self.graph
        # torch keeps [out, in]; the product needs [in, out]
        weight = g.constant(f"{source}.weight", self.weights(f"{source}.weight").t().contiguous())
        return g.node(
            "Add",
            name,
            g.node("MatMul", f"{name}/product", x, weight),
            self._weight(f"{source}.bias"),
        )

    def _weight(self, name: str) -> str:
        return self.graph.constant(name, self.weights(name))

    def _to_dtype(self, name: str, x: str) -> str:
        return x if self.dtype == torch.float32 else self.graph.cast(name, x, self.dtype)

    def _record(self, name: str) -> str:
        self.layer_outputs.append(name)
        return name


def pooling_matrix(side: int) -> Tensor:
    """fp32 [N, P]: bilinear interpolation from side x side to ceil(side/2) squared, torch's own."""
    patches, pooled = side * side, (side + 1) // 2
    images = torch.eye(patches).view(patches, 1, side, side)
    small = torch.nn.functional.interpolate(images, size=(pooled, pooled), mode="bilinear")
    return small.view(patches, pooled * pooled).t().contiguous()
