"""`dycoke doctor --try-plugin`: an engine of one plugin, by either interface, on this GPU.

What no reading settles is whether TensorRT hands host memory to a plugin as it is: DycokeRope reads
host_request_types there. Its output is compared with the definition, for a prompt and two decoding
rows. Each interface is tried in a process of its own, since a wrong guess may end it.

Followed: tensorrt's Python API of 10.14 (Builder, Runtime, IExecutionContext.execute_async_v3).
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..bundle.paths import KERNELS
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from ..runtime.tensorrt_library import TENSORRT
from .plugin_fields import kernels_manifest, rope_fields
from .plugin_interfaces import VERSIONS, add_plugin, create_plugin
from .plugin_library import plugin_library
from .plugin_nodes import ROPE, ROPE_INPUTS

HOST = "host_request_types"
PROMPT, LENGTHS = 5, (9, 12)  # tokens of the prompt row, lengths of the decoding rows
POSITIONS = 16
_PATIENCE = 300  # seconds for one engine


@dataclass(frozen=True)
class Trial:
    """Whether plugins of `interface` work here; reason: why not, in one line."""

    interface: str
    works: bool
    reason: str = ""


def try_plugin(bundle: Path, plugin: Path | None = None) -> list[Trial]:
    """One trial per interface, with the bundle's kernels.

    plugin: the library, by default the built one. Raises DyCokeError where there is no TensorRT, no
    library, or a bundle without kernels: then nothing can be tried.
    """
    if TENSORRT.version is None:
        raise DyCokeError("--try-plugin: tensorrt is not installed, so nothing can be tried here")
    library, kernels = plugin_library(plugin), bundle / KERNELS
    rope_fields(kernels)
    return [_in_a_process(interface, library, kernels) for interface in VERSIONS]


def advice(trials: list[Trial]) -> str:
    """What to build with."""
    works = [trial.interface for trial in trials if trial.works]
    if not works:
        return "neither interface works here: build with --p 0 exports, and report this"
    return f"dycoke build BUNDLE --plugin-interface {works[0]}"


def _in_a_process(interface: str, library: Path, kernels: Path) -> Trial:
    command = [sys.executable, "-m", __name__, interface, str(library), str(kernels)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_PATIENCE
        )
    except subprocess.TimeoutExpired:
        return Trial(interface, False, f"no end after {_PATIENCE} s")
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    told = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode != 0 or not lines:
        last = (told or lines or ["no message"])[-1]
        return Trial(interface, False, f"exit status {done.returncode}: {last}")
    trial = Trial(**json.loads(lines[-1]))
    errors = [line for line in told if "error:" in line or "[E]" in line]
    if trial.works or not errors:
        return trial
    return replace(trial, reason=f"{trial.reason}: {errors[0]}")


def define(trt: Any, network: Any, interface: str, kernels: Path) -> None:
    """The network: ROPE_INPUTS -> DycokeRope -> `out`. Sizes are those of the bundle's kernels."""
    shape = kernels_manifest(kernels)["shape"]
    width = (shape["heads"] + 2 * shape["kv_heads"]) * shape["head_dim"]
    known: dict[str, tuple[str, tuple[int, ...]]] = {
        "qkv": (Dtype(shape["dtype"]).tensorrt, (-1, width)),
        "cos_sin": ("FLOAT", (1, POSITIONS * shape["head_dim"])),
    }
    inputs = []
    for name in ROPE_INPUTS:
        dtype, sizes = known.get(name, ("INT32", (-1,)))
        inputs.append(network.add_input(name, getattr(trt.DataType, dtype), sizes))
    plugin = create_plugin(trt, interface, ROPE, rope_fields(kernels))
    output = add_plugin(network, interface, inputs, plugin).get_output(0)
    output.name = "out"
    network.mark_output(output)


def example(shape: dict[str, Any]) -> dict[str, Any]:
    """Tensors on the CPU by their names in ROPE_INPUTS: one prompt row, then decoding rows."""
    import torch

    made = torch.Generator().manual_seed(0)
    tokens, dim = PROMPT + len(LENGTHS), shape["head_dim"]
    heads = shape["heads"] + 2 * shape["kv_heads"]
    qkv = torch.randn(tokens, heads * dim, generator=made)
    steps = 10_000.0 ** (-torch.arange(dim // 2) / (dim // 2))
    angles = torch.arange(POSITIONS)[:, None] * steps
    table = torch.stack([angles.cos(), angles.sin()], -1).reshape(1, -1)
    ints = torch.int32
    return {
        "qkv": qkv.to(Dtype(shape["dtype"]).torch),
        "cos_sin": table.float(),
        "sequence_length": torch.tensor([PROMPT, *LENGTHS], dtype=ints),
        "context_lengths": torch.tensor([PROMPT, *(length - 1 for length in LENGTHS)], dtype=ints),
        HOST: torch.tensor([0, *(1 for _ in LENGTHS)], dtype=ints),
    }


def expected(given: dict[str, Any], shape: dict[str, Any]) -> Any:
    """`out` from the definition of RoPE: q and k turned to their positions, v as it was."""
    import torch

    dim, turned = shape["head_dim"], shape["heads"] + shape["kv_heads"]
    positions = torch.tensor([*range(PROMPT), *(length - 1 for length in LENGTHS)])
    cos, sin = given["cos_sin"].reshape(POSITIONS, dim // 2, 2)[positions, None].unbind(-1)
    heads = given["qkv"].unflatten(1, (-1, dim))
    first, second = heads[:, :turned].float().chunk(2, -1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return torch.cat([rotated.to(heads.dtype), heads[:, turned:]], 1).flatten(1)


def run(interface: str, library: Path, kernels: Path) -> Trial:
    """Builds, deserialises and runs the engine on this process's GPU."""
    import tensorrt as trt
    import torch

    from ..runtime.trtllm.plugin import load_plugins

    load_plugins(library)
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    define(trt, network, interface, kernels)
    shape = kernels_manifest(kernels)["shape"]
    given = example(shape)
    profile = builder.create_optimization_profile()
    for name, tensor in given.items():
        if name != "cos_sin":  # the one of a fixed size
            profile.set_shape(name, *[tuple(tensor.shape)] * 3)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return Trial(interface, False, "TensorRT built no engine")
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    output = torch.empty_like(given["qkv"], device="cuda")
    bound = {name: t if name == HOST else t.cuda() for name, t in given.items()} | {"out": output}
    for name, tensor in bound.items():
        if name != "out" and not context.set_input_shape(name, tuple(tensor.shape)):
            return Trial(interface, False, f"TensorRT refused the shape of {name}")
        if not context.set_tensor_address(name, tensor.data_ptr()):
            return Trial(interface, False, f"TensorRT refused the address of {name}")
    stream = torch.cuda.current_stream()
    if not context.execute_async_v3(stream.cuda_stream):
        return Trial(interface, False, "the step failed")
    stream.synchronize()
    worst = (output.cpu().float() - expected(given, shape).float()).abs().max().item()
    if not worst <= 0.05:  # NaN is not either
        return Trial(interface, False, f"the output is off by {worst:g}")
    return Trial(interface, True)


if __name__ == "__main__":
    _, chosen, library_path, kernels_path = sys.argv
    print(json.dumps(asdict(run(chosen, Path(library_path), Path(kernels_path)))))
