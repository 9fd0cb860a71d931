"""What a server with TensorRT engines needs besides its repository: plugins, memory pools, ranks.

Followed: triton_backend/scripts/launch_triton_server.py at 0a2e2c1 (one server per rank under
mpirun, all ranks but the first load the LLM alone); docs/user_guide/custom_operations.md of
triton-inference-server/server (LD_PRELOAD for plugins).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ..bundle.manifest import Manifest
from ..bundle.record import EngineRecord
from ..core.errors import DyCokeError
from ..engines.plugin_library import plugin_library
from ..runtime.installed import CONTAINER
from ..runtime.protocol import LLM
from ..runtime.trtllm.plugin import AUTOREGISTER, COUNTERS, LIBRARY, LIBRARY_VARIABLE
from .tritonserver import TritonServer
from .trtllm import CPP_BACKEND, EXECUTOR, LLM_CHOICES

_MIB = 2**20
_LEAST_POOL = 64 * _MIB  # Triton's own default for CUDA memory
_BASE_SHARED = 256 * _MIB  # regions of the Python models before any request


def server_environment(
    engines: Path, record: EngineRecord, counters: str = "", plugin: Path | None = None
) -> dict[str, str]:
    """Additions to the server's environment. counters: file that the plugins count in, or "".
    plugin: another library than the one that lies beside the engines.

    LD_PRELOAD is what reaches every process that deserialises an engine, workers too; in others,
    such as mpirun and env, the library does nothing (plugin/entry.cpp).
    Raises DyCokeError for counters or a library of engines without plugins, and for a library that
    is not for this release and this TensorRT.
    """
    if LIBRARY not in record.files:
        for name, given in (("--counters", counters), ("--plugin", plugin)):
            if given:
                raise DyCokeError(f"{name} {given} has no effect: no plugins with --p 0")
        return {}
    library = str(plugin_library(plugin) if plugin else (engines / LIBRARY).resolve())
    before = os.environ.get("LD_PRELOAD", "")
    variables = {"LD_PRELOAD": f"{library}:{before}".rstrip(":"), AUTOREGISTER: "1"}
    variables[LIBRARY_VARIABLE] = library  # models in Python load the same one
    return variables | ({COUNTERS: counters} if counters else {})


def server_options(manifest: Manifest, record: EngineRecord) -> list[str]:
    """Options of tritonserver. Visual embeddings go from the plan to the LLM through Triton's pool
    of CUDA memory on GPU 0: it holds a table for every sequence of a full batch."""
    needed = record.max_batch * table_bytes(manifest)
    pool = -(-max(needed, _LEAST_POOL) // _MIB) * _MIB
    return [f"--cuda-memory-pool-byte-size=0:{pool}"]


def table_bytes(manifest: Manifest) -> int:
    """Of the largest prompt embedding table of one request."""
    most = manifest.vision.max_frames // 4 * 4
    rows = manifest.visual_tokens(most)
    return rows * manifest.llm.hidden * manifest.vision.dtype.bytes


def shared_memory(manifest: Manifest, record: EngineRecord, llm: str) -> int:
    """Bytes of /dev/shm that a full batch may take. For docker's --shm-size.

    Frames cross it between Triton and its Python models, twice per request (as they came, and
    resized), and so does the embedding table where `tensorrt_llm` is one of these (llm: EXECUTOR).
    """
    frames = manifest.vision.max_frames * 3 * manifest.vision.image_size**2
    table = table_bytes(manifest) if llm == EXECUTOR else 0
    return _BASE_SHARED + record.max_batch * (2 * frames + table)


def shm_advice(manifest: Manifest, record: EngineRecord, llm: str, available: int) -> str:
    """A line for a container that was given too little; "" where it is enough."""
    needed = shared_memory(manifest, record, llm)
    if available >= needed:
        return ""
    gib = -(-needed // 2**30)
    return (
        f"/dev/shm has {available / 2**30:.1f} GiB, a full batch of the longest videos takes "
        f"{needed / 2**30:.1f}: start the container with --shm-size={gib}g"
    )


def choose_llm(wanted: str, server: TritonServer, *, has_bindings: bool) -> str:
    """CPP_BACKEND or EXECUTOR; `auto` is the first where the server has it.

    has_bindings: TensorRT-LLM is installed for Python. Raises DyCokeError for an unknown name, and
    for one that cannot run on this machine.
    """
    if wanted not in LLM_CHOICES:
        raise DyCokeError(f"--llm {wanted!r} is not allowed; allowed: {', '.join(LLM_CHOICES)}")
    library = server.backend_library(CPP_BACKEND)
    has_library = library.is_file()
    chosen = wanted if wanted != "auto" else CPP_BACKEND if has_library else EXECUTOR
    if chosen == CPP_BACKEND and not has_library:
        raise DyCokeError(f"--llm {CPP_BACKEND}: {library} is missing; use --llm {EXECUTOR}")
    if chosen == EXECUTOR and not has_bindings:
        absent = "" if has_library else f", nor is there {library}"
        raise DyCokeError(
            f"--llm {wanted}: tensorrt_llm is not installed in {sys.executable}{absent}; serve in "
            f"{CONTAINER}"
        )
    return chosen


def mpi_environment(patience: int) -> dict[str, str]:
    """Open MPI kills ranks a second after it asked them to end: too early for streams in flight.

    patience: seconds. Both names, of Open MPI 4 and of its launcher from 5 on.
    """
    name = "odls_base_sigkill_timeout"
    return {f"OMPI_MCA_{name}": str(patience), f"PRTE_MCA_{name}": str(patience)}


def mpi_command(command: Sequence[str], world_size: int, path: str) -> list[str]:
    """One server per rank. The first serves clients; the others load the LLM's rank alone and
    listen nowhere, so that no port is wanted twice.

    path: PATH of the servers, whose first python3 runs their models: mpirun puts its own folder
    before it. Raises DyCokeError without mpirun.
    """
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        raise DyCokeError(
            f"TP={world_size} needs mpirun, which is not on PATH; use the container of "
            "docs/tensorrt.md"
        )
    binary, *options = command
    services = ("--http-", "--grpc-", "--metrics-", "--cuda-memory-pool")
    worker = [option for option in options if not option.startswith(services)]
    quiet = [f"--allow-{service}=false" for service in ("http", "grpc", "metrics")]
    alone = ["--model-control-mode=explicit", f"--load-model={LLM}"]
    begin = ["-n", "1", "env", f"PATH={path}", binary]
    ranks = [mpirun, "--allow-run-as-root", *begin, *options]
    for _ in range(world_size - 1):
        ranks += [":", *begin, *worker, *quiet, *alone]
    return ranks
