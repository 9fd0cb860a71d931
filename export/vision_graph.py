"""The graph of the vision step: what torch exports of arch/siglip.py, named for people.

Tracing takes seconds (27 layers: most of a minute) and depends on the module's shape alone, so a
graph is traced once in a process, and once per folder where DYCOKE_GRAPH_CACHE names one.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..arch.siglip import VisionModel, stage_names
from ..arch.spec import VisionSpec
from ..bundle.atomic import atomic_bytes
from ..bundle.paths import FRAMES, VISION_WEIGHTS, VISUAL_EMBEDS
from ..bundle.safetensors_file import SafetensorsFile

OPSET = 20  # the first with Gelu; TensorRT 10.1 to 10.15 take opsets 9 to 20 and more
IR_VERSION = 9  # the one of opset 20
ROWS = "kept_rows"  # an output that tests ask for
CACHE = "DYCOKE_GRAPH_CACHE"  # environment: a folder where traced graphs are kept
_PACKAGE = Path(__file__).parents[1]
_SOURCES = (
    "arch/siglip.py", "arch/spec.py", "compress/*.py", "core/ttm.py", "export/vision_graph.py",
)  # fmt: skip


class _Stages(torch.nn.Module):
    """The model with every compared value as an output: that is how they get their names."""

    def __init__(self, model: VisionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        stages = self.model.stages(frames)
        return stages.visual_embeds, stages.rows, *stages.named().values()


@cache
def trace_graph(spec: VisionSpec, dtype: torch.dtype) -> bytes:
    """The graph of that model, an onnx.ModelProto whose weights are names without content.

    Outputs: `visual_embeds`, `kept_rows`, and every stage under its name.
    """
    folder = os.environ.get(CACHE)
    if not folder:
        return _trace(spec, dtype)
    path = Path(folder) / f"{_key(spec, dtype)}.onnx"
    if path.is_file():
        return path.read_bytes()
    graph = _trace(spec, dtype)
    atomic_bytes(path, graph)
    return graph


def _key(spec: VisionSpec, dtype: torch.dtype) -> str:
    """Of everything that a traced graph depends on: the shape, the code, the exporter."""
    exporter = [f"{name} {version(name)}" for name in ("torch", "onnxscript", "onnx-ir")]
    sources = sorted(path for pattern in _SOURCES for path in _PACKAGE.glob(pattern))
    code = [path.read_text() for path in sources]
    return hashlib.sha256(repr((spec, dtype, exporter, code)).encode()).hexdigest()


def _trace(spec: VisionSpec, dtype: torch.dtype) -> bytes:
    import onnx_ir

    tower, model = spec.tower, VisionModel(spec, dtype)
    _tell_apart(model)
    frames = torch.zeros((), dtype=torch.uint8).expand(2, 8, 3, tower.image_size, tower.image_size)
    batch, windows = (torch.export.Dim(n, min=1, max=1 << 12) for n in ("batch", "windows"))
    with _quiet(), torch.no_grad():
        # On its own: torch.onnx.export would make sizes constant where code asks for their values.
        captured = torch.export.export(
            _Stages(model).eval(),
            (frames,),
            dynamic_shapes={FRAMES: {0: batch, 1: 4 * windows}},
            strict=False,
        )
        program = torch.onnx.export(
            captured,
            dynamo=True,
            input_names=[FRAMES],
            output_names=[VISUAL_EMBEDS, ROWS, *stage_names(tower.layers)],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    exported = program.model
    parameters = {name for name, _ in model.named_parameters()}
    for value in list(exported.graph.initializers.values()):
        name = value.name = str(value.name).removeprefix("model.")
        if name in parameters:
            placeholder: Any = value.const_value
            value.const_value = onnx_ir.ExternalTensor(
                VISION_WEIGHTS, 0, 0, placeholder.dtype, shape=placeholder.shape, name=name
            )
    _sizes_from_floats(exported)
    _name_nodes(exported)
    exported.ir_version, exported.producer_name = IR_VERSION, "dycoke-trt"
    exported.producer_version = None
    exported.graph.name = "vision_ttm"
    serialized: bytes = onnx_ir.to_proto(exported).SerializeToString()
    return serialized


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own deprecations, and its notes on packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _tell_apart(model: VisionModel) -> None:
    """Gives each parameter a value of its own: torch's optimiser joins equal ones."""
    one = torch.ones((), dtype=model.dtype)
    bits = {4: torch.int32, 2: torch.int16}[one.itemsize]
    for i, parameter in enumerate(model.parameters()):
        parameter.data = (one.view(bits) + i).view(model.dtype).expand(parameter.shape)


def _sizes_from_floats(exported: Any) -> None:
    """The input's sizes are read off its float copy: TensorRT takes UINT8 for nothing but Cast."""
    (frames,) = exported.graph.inputs
    users = [node for node, _ in frames.uses()]
    (cast,) = (node for node in users if node.op_type == "Cast")
    for node in users:
        if node is not cast:
            node.replace_input_with(0, cast.outputs[0])
    exported.graph.sort()


def _name_nodes(exported: Any) -> None:
    """Nodes are called after their module and operator, such as `tower/layers.0/q/MatMul`, and
    `_2`, `_3` where it has more of them. What else torch notes of them goes, the paths of its
    source files first of all."""
    counts: Counter[str] = Counter()
    for node in exported.graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        inside = scopes[-2] if len(scopes) > 1 and scopes[-2].startswith("model.") else ""
        module = re.sub(r"\.(?!\d)", "/", inside.removeprefix("model."))
        name = f"{module}/{node.op_type}" if module else node.op_type
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"
        node.metadata_props.clear()
    for value in exported.graph.initializers.values():
        value.metadata_props.clear()
    exported.metadata_props.clear()


def finish_graph(
    serialized: bytes, weights: SafetensorsFile, props: dict[str, str], *, kept_rows: bool
) -> bytes:
    """The traced graph with its weights found in `weights`, and the outputs that users see."""
    import onnx

    model = onnx.load_model_from_string(serialized)
    for tensor in model.graph.initializer:
        if (entry := weights.entries.get(tensor.name)) is not None:
            place = {"location": weights.path.name, "offset": entry.start}
            place["length"] = entry.stop - entry.start
            del tensor.external_data[:]
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
    dims = {FRAMES: ["batch", "frames"], VISUAL_EMBEDS: ["batch", "visual_tokens"]}
    if kept_rows:
        dims[ROWS] = ["batch", "survivors"]
    kept = [value for value in model.graph.output if value.name in dims]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    for value in [*model.graph.input, *model.graph.output]:
        for dim, name in zip(value.type.tensor_type.shape.dim, dims[value.name], strict=False):
            dim.dim_param = name
    onnx.helper.set_model_props(model, props)
    return bytes(model.SerializeToString())
