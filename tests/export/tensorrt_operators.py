"""The ONNX operators that the vision graph may use, and the types TensorRT 10.14 takes them in.

Source: docs/operators.md of onnx/onnx-tensorrt, read at 10.1-GA (commit 96e7811) and at 10.15: both
list all of these with these types, so 10.14, which lies between, does too. Restrictions there that
matter here: UINT8 only as a network input (Cast comes first); LayerNormalization's first output
only; TopK sorted, K below 3840; reduction axes as initializers.
"""

from __future__ import annotations

TENSORRT_OPERATORS: dict[str, tuple[str, ...]] = {
    "Add": ("float", "float16", "bfloat16", "int32", "int64"),
    "Cast": ("float", "float16", "bfloat16", "int32", "int64", "uint8", "bool"),
    "Concat": ("float", "float16", "bfloat16", "int32", "int64", "bool"),
    "Div": ("float", "float16", "bfloat16", "int32", "int64"),
    "Expand": ("float", "float16", "bfloat16", "int32", "int64", "bool"),
    "Gather": ("float", "float16", "bfloat16", "int32", "int64", "bool"),
    "Gelu": ("float", "float16", "bfloat16"),
    "Greater": ("float", "float16", "bfloat16", "int32", "int64"),
    "LayerNormalization": ("float", "float16", "bfloat16"),
    "MatMul": ("float", "float16", "bfloat16"),
    "Mul": ("float", "float16", "bfloat16", "int32", "int64"),
    "Range": ("float", "float16", "bfloat16", "int32", "int64"),
    "ReduceL2": ("float", "float16", "bfloat16", "int32", "int64"),
    "ReduceSum": ("float", "float16", "bfloat16", "int32", "int64"),
    "Reshape": ("float", "float16", "bfloat16", "int32", "int64", "bool"),
    "Round": ("float", "float16", "bfloat16"),
    "Shape": ("float", "float16", "bfloat16", "int32", "int64", "bool"),
    "Slice": ("float", "float16", "bfloat16", "int32", "int64", "bool"),
    "Softmax": ("float", "float16", "bfloat16"),
    "Squeeze": ("float", "float16", "bfloat16", "int32", "int64", "bool"),
    "TopK": ("float", "float16", "bfloat16", "int32", "int64"),
    "Transpose": ("float", "float16", "bfloat16", "int32", "int64", "bool"),
    "Unsqueeze": ("float", "float16", "bfloat16", "int32", "int64", "bool"),
    "Where": ("float", "float16", "bfloat16", "int32", "int64", "bool"),
}
