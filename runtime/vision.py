"""The vision step: on an engine of TensorRT or of TensorRT for RTX, or native.

Native is `vision_ttm.onnx` in ONNX Runtime on a CPU, and the same module in torch on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..bundle.paths import (
    FRAMES,
    RECORD,
    VISION_FILES,
    VISION_GRAPH,
    VISUAL_EMBEDS,
    engine_directory,
    rtx_directory,
)
from ..core.errors import DyCokeError

if TYPE_CHECKING:
    from torch import Tensor

NATIVE, TENSORRT, RTX = "native", "tensorrt", "rtx"
KINDS = (NATIVE, TENSORRT, RTX)


class Vision(Protocol):
    """The vision step: uint8 [B, F, 3, S, S], F a multiple of 4 -> [B, M+1, hidden]."""

    def __call__(self, frames: Tensor) -> Tensor: ...


def load_vision(
    bundle: Path,
    build: str,
    threads: int = 0,
    kind: str = NATIVE,
    *,
    cuda_graph: bool = False,
) -> Vision:
    """The vision step beside the LLM that `dycoke build --target build` made.

    kind: NATIVE, for the build `cpu` or `cuda`; TENSORRT, the plan of any other; RTX, the engine of
    `--vision rtx`, with anything on a GPU. threads: of a CPU, 0 takes all cores. cuda_graph: of
    RTX. Raises DyCokeError for a bundle that cannot be loaded or is damaged, an engine that does
    not fit this machine, and without a GPU for anything but `cpu`.
    """
    if kind == TENSORRT:
        return _plan(bundle, build)
    if kind == RTX:
        return _rtx(bundle, cuda_graph)
    from ..bundle.loading import checked_parts  # needs pydantic, which a benchmark may lack

    if build == "cpu":
        with checked_parts(bundle, *VISION_FILES):
            return OnnxVision(bundle, threads)
    import torch

    from .gpu import find_gpu
    from .vision_torch import TorchVision

    place = find_gpu()
    try:
        with checked_parts(bundle, *VISION_FILES):
            return TorchVision.from_bundle(bundle, place, kernels=True)
    except torch.OutOfMemoryError:
        raise DyCokeError(
            f"{bundle}: the vision step does not fit in what is free of the GPU's memory"
        ) from None


def _plan(bundle: Path, build: str) -> Vision:
    from ..bundle.loading import checked_while_loading
    from ..bundle.paths import VISION_PLAN
    from ..bundle.record import open_build
    from .installed import installed
    from .tensorrt_library import TENSORRT as LIBRARY
    from .vision_engine import EngineVision

    folder = engine_directory(bundle, build)
    _, record = open_build(bundle, build, installed=installed())
    again = f"run: dycoke build {bundle} --target {build}, here"
    plan = {VISION_PLAN: record.files[VISION_PLAN]}
    with checked_while_loading(folder, plan, RECORD, again):
        return EngineVision(folder / VISION_PLAN, LIBRARY.load(), again=again)


def _rtx(bundle: Path, cuda_graph: bool) -> Vision:
    from ..bundle.files import open_bundle
    from ..bundle.loading import checked_while_loading
    from ..bundle.paths import RUNTIME_CACHE, VISION_PLAN
    from ..bundle.vision_record import read_vision_record
    from .nvidia_smi import visible_gpus
    from .tensorrt_library import TENSORRT_RTX
    from .vision_engine import EngineVision

    library = TENSORRT_RTX.load()
    gpus = visible_gpus()
    record = read_vision_record(
        bundle, open_bundle(bundle), version=library.version, sm=gpus[0].sm if gpus else None
    )
    folder = rtx_directory(bundle)
    again = f"run: dycoke build {bundle} --vision rtx --target this-gpu, on the GPU"
    with checked_while_loading(folder, record.files, RECORD, again):
        return EngineVision(
            folder / VISION_PLAN,
            library,
            again=again,
            runtime_cache=folder / RUNTIME_CACHE,
            cuda_graph=cuda_graph,
            refit=bundle / VISION_GRAPH if record.weights == "stripped" else None,
        )


class OnnxVision:
    """Frames to visual embeddings. threads: 0 takes as many as there are cores."""

    def __init__(self, bundle: Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        path = bundle / VISION_GRAPH
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library's exceptions share no public base class
            reason = str(error).strip().splitlines()[0]
            raise DyCokeError(f"{path}: ONNX Runtime cannot load it ({reason})") from None

    def __call__(self, frames: Tensor) -> Tensor:
        """frames: uint8 [B, F, 3, S, S], F a multiple of 4 -> [B, M+1, hidden] in its dtype."""
        import torch

        (embeddings,) = self._session.run([VISUAL_EMBEDS], {FRAMES: frames.numpy()})
        return torch.from_numpy(embeddings)
