"""What `dycoke doctor` looks at: versions, GPU, plugin, counters, and the table of containers.

Facts of the container table that were read in a published source carry it; the others say
UNVERIFIED, and a machine that disagrees with them is right.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from ..core.errors import DyCokeError
from ..cost.gpus import OLDEST_SM
from ..runtime.nvidia_smi import driver_cuda, visible_gpus
from ..runtime.tensorrt_library import TENSORRT, TENSORRT_RTX, version_of
from ..runtime.trtllm.counters import COUNTS, counters_path, read_counters
from ..runtime.trtllm.plugin import COUNTERS, PLUGIN_ABI
from .plugin_library import plugin_library

Status = Literal["ok", "warning", "missing"]


@dataclass(frozen=True)
class Finding:
    """One line of the report. value: what is here; note: what follows from it."""

    name: str
    status: Status
    value: str
    note: str = ""


@dataclass(frozen=True)
class Container:
    """A release of nvcr.io/nvidia/tritonserver, tag `-trtllm-python-py3`, and what it holds."""

    tag: str
    triton: str
    tensorrt_llm: str
    tensorrt: str
    cuda: str
    source: str


CONTAINERS = (
    Container(
        "26.07", "2.71.0", "1.2.1", "10.14.1", "13.1",
        "triton-inference-server/server issue 8945; TENSORRTLLM_VER in tensorrtllm_backend "
        "(0b9d7d5); UNVERIFIED: that the C++ backend `tensorrtllm` is still in the image",
    ),
    Container(
        "26.04 to 26.06", "UNVERIFIED", "1.2.1", "10.14.1", "13.1",
        "UNVERIFIED: release notes were not read for each of them",
    ),
)  # fmt: skip


def examine() -> list[Finding]:
    """GPU, driver, CUDA, TensorRT, TensorRT-LLM, plugin library, counters."""
    return [
        *_gpu(),
        _package(TENSORRT.title, CONTAINERS[0].tensorrt, *TENSORRT.distributions),
        _package("TensorRT-LLM", CONTAINERS[0].tensorrt_llm, "tensorrt-llm"),
        _package(TENSORRT_RTX.title, "", *TENSORRT_RTX.distributions),
        _package("Polygraphy", "", "polygraphy"),
        _torch(),
        _package("Triton language", "", "triton"),
        _package("ONNX Runtime", "", "onnxruntime", "onnxruntime-gpu"),
        _plugin(),
        counters_finding(os.environ.get(COUNTERS)),
    ]


def _gpu() -> list[Finding]:
    gpus = visible_gpus()
    if not gpus:
        return [Finding("GPU", "missing", "none", "nvidia-smi lists none")]
    first, cuda = gpus[0], driver_cuda()
    many = f"{len(gpus)} x " if len(gpus) > 1 else ""
    old = first.sm < OLDEST_SM
    return [
        Finding(
            "GPU",
            "warning" if old else "ok",
            f"{many}{first.name}, sm_{first.sm}, {first.memory / 1e9:.1f} GB",
            f"engines need sm_{OLDEST_SM} or newer" if old else "",
        ),
        Finding("driver", "ok", first.driver),
        Finding("CUDA of the driver", "ok" if cuda else "warning", cuda or "unknown"),
    ]


def _package(name: str, expected: str, *distributions: str) -> Finding:
    number = version_of(*distributions)
    if number is None:
        return Finding(name, "missing", "not installed")
    if expected and not (number + ".").startswith(expected + "."):
        return Finding(name, "warning", number, f"written for {expected}")
    return Finding(name, "ok", number)


def _torch() -> Finding:
    """Builds for a CPU say so in their version; importing torch to ask would take seconds."""
    number, name = version_of("torch"), "PyTorch for CUDA"
    if number is None or number.endswith("+cpu"):
        return Finding(name, "missing", number or "not installed")
    return Finding(name, "ok", number)


def _plugin() -> Finding:
    try:
        path = plugin_library()
    except DyCokeError as error:
        return Finding("plugin", "missing", "none", str(error))
    return Finding("plugin", "ok", str(path), f"this release has plugin ABI {PLUGIN_ABI}")


def counters_finding(name: str | None) -> Finding:
    """name: of the file that a server's plugins write. Rows that were passed through although they
    could have been pruned are a warning: something keeps the plugin from knowing its sequences."""
    if not name:
        return Finding("counters", "missing", "off", f"set {COUNTERS}=FILE for the server")
    pattern = counters_path(name, "*")
    files = sorted(pattern.parent.glob(pattern.name))
    if not files:
        return Finding("counters", "missing", name, "no such file: no step has run yet")
    total = dict.fromkeys(COUNTS, 0)
    for file in files:
        try:
            for kind, count in read_counters(file).items():
                total[kind] += count
        except DyCokeError:
            return Finding("counters", "warning", str(file), "not a counters file")
    value = ", ".join(f"{count} {kind}" for kind, count in total.items())
    if total["unknown"]:
        note = "unknown rows were not pruned: block reuse or an engine of another server's state"
        return Finding("counters", "warning", value, note)
    return Finding("counters", "ok", value)


def matching_container(tensorrt_llm: str | None, tensorrt: str | None) -> Container | None:
    """The container whose versions these are."""
    for container in CONTAINERS:
        if container.tensorrt_llm == tensorrt_llm and (tensorrt or "").startswith(
            container.tensorrt
        ):
            return container
    return None
