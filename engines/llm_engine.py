"""The LLM engine: trtllm-build on the bundle's checkpoint, with our model class by its own hook.

A process of its own per build: the documented way in, and its memory is gone before the next part
is built. Options are those of commands/build.py and plugin/plugin.py (cli_plugin_args) of the 1.2
era; all that matter here are given, so that no default of a release decides.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from ..bundle.manifest import Manifest
from ..bundle.paths import KERNELS as KERNELS_FOLDER
from ..bundle.paths import LLM
from ..core.errors import DyCokeError
from ..runtime.trtllm.plugin import LIBRARY_VARIABLE
from .build_plan import BuildPlan
from .plugin_nodes import INTERFACE, KERNELS

MODEL_CLASS = "DycokeQwen2ForCausalLM"
_HOOK = f'''"""For trtllm-build --model_cls_file."""
from dycoke_trt.engines.llm_model import {MODEL_CLASS}

__all__ = ["{MODEL_CLASS}"]
'''


def build_command(
    checkpoint: Path, output: Path, manifest: Manifest, plan: BuildPlan, cache: Path, hook: Path
) -> list[str]:
    """The command line. With p = 0 the hook is left out: the stock class, the identical network."""
    dtype = manifest.llm.dtype
    values = {
        "checkpoint_dir": checkpoint,
        "output_dir": output,
        "max_batch_size": plan.max_batch,
        "max_input_len": plan.max_input_len,
        "max_seq_len": plan.max_seq_len,
        "max_num_tokens": plan.max_num_tokens,
        "max_beam_width": 1,
        "max_multimodal_len": plan.max_table_rows,
        "kv_cache_type": "paged",
        "tokens_per_block": plan.tokens_per_block,
        "gpt_attention_plugin": dtype,
        "gemm_plugin": dtype,
        "remove_input_padding": "enable",
        "context_fmha": "enable",
        "use_paged_context_fmha": "enable",  # chunked prompts need it
        "reduce_fusion": "disable",  # a layer then has one place where it reads its lengths
        "workers": 1,
        "input_timing_cache": cache,
        "output_timing_cache": cache,
    }
    command = ["trtllm-build"]
    for name, value in values.items():
        command += [f"--{name}", str(value)]
    if manifest.config.p > 0:
        command += ["--model_cls_file", str(hook), "--model_cls_name", MODEL_CLASS]
    return command


def build_environment(bundle: Path, library: Path | None, interface: str) -> dict[str, str]:
    """This process's environment and what the model class looks up."""
    kernels = str((bundle / KERNELS_FOLDER).resolve())
    environment = dict(os.environ) | {KERNELS: kernels, INTERFACE: interface}
    return environment | ({LIBRARY_VARIABLE: str(library)} if library else {})


def check_kernels(bundle: Path, manifest: Manifest, plan: BuildPlan) -> None:
    """Raises DyCokeError if the bundle has no kernel images for this GPU and block size."""
    if manifest.config.p == 0:
        return
    name = f"{KERNELS_FOLDER}/select_b{plan.tokens_per_block}"
    if any(f"{name}.{image}" in manifest.parts for image in (f"sm_{plan.sm}.cubin", "ptx.ptx")):
        return
    raise DyCokeError(
        f"{bundle} has no kernel images for sm_{plan.sm} and {plan.tokens_per_block} tokens per "
        "block; export again with --kernel-target all, or choose --tokens-per-block 32 or 64"
    )


def build_llm_engine(
    bundle: Path,
    manifest: Manifest,
    plan: BuildPlan,
    directory: Path,
    cache: Path,
    library: Path | None,
    log: Path,
) -> None:
    """Writes `directory`: config.json and one rank{r}.engine per rank. log: what the build printed.

    Raises DyCokeError with the last error of the build.
    """
    if shutil.which("trtllm-build") is None:
        raise DyCokeError("trtllm-build is not on PATH, though TensorRT-LLM is installed")
    hook = log.parent / "dycoke_model.py"
    hook.write_text(_HOOK)
    command = build_command(bundle / LLM, directory, manifest, plan, cache, hook)
    environment = build_environment(bundle, library, plan.plugin_interface)
    with log.open("wb") as output:
        done = subprocess.run(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    missing = [rank for rank in range(plan.tp) if not (directory / f"rank{rank}.engine").is_file()]
    if done.returncode or missing:
        reason = explain(log.read_text(errors="replace"))
        raise DyCokeError(f"trtllm-build failed: {reason} (log: {log})")


def explain(log: str) -> str:
    """The line of a build's log that says what went wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    ours = [line for line in lines if "DyCokeError: " in line]
    if ours:
        return ours[-1].partition("DyCokeError: ")[2]
    # Python's last line, or the last that TensorRT's logger calls an error.
    errors = [line for line in lines if "Error" in line or "[E]" in line]
    return (errors or lines or ["it printed nothing"])[-1]
