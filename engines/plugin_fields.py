"""The fields that each plugin is made with, as arrays: what `trt.PluginField` takes.

int32, int64 and float32 arrays of one element are fields of that type; uint8 arrays are bytes
(PluginFieldType.UNKNOWN). Kernel images travel in the engine, so serving needs no other file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.config import DyCokeConfig
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from ..kernels import MANIFEST

Fields = dict[str, NDArray[Any]]
SCORE_KERNELS = ("logits", "scores")  # the latter with several ranks
SELECT_KERNELS = ("context", "select")
REORDER_KERNEL = "reorder"
ROPE_KERNELS = ("rotary",)


def score_fields(kernels: Path, tokens_per_block: int, *, layer: int, splits: int = 16) -> Fields:
    """DycokeScore. layer: the scoring one; splits: programs that share one sequence's keys."""
    manifest = kernels_manifest(kernels)
    return {
        "images": pack_images(kernels, SCORE_KERNELS, tokens_per_block),
        "layer": np.array([layer], np.int32),
        "splits": np.array([splits], np.int32),
        "ranks": np.array([manifest["shape"]["ranks"]], np.int32),
    }


def select_fields(
    kernels: Path, tokens_per_block: int, config: DyCokeConfig, *, layers: int, visual_base: int
) -> Fields:
    """DycokeSelect. layers: of the KV pool; visual_base: ids from here on are visual.

    The kernel that moves K and V comes along where there is an order of importance.
    """
    orders = config.order == "importance"
    shape = kernels_manifest(kernels)["shape"]
    element = Dtype(shape["dtype"]).bytes
    names = (*SELECT_KERNELS, REORDER_KERNEL) if orders else SELECT_KERNELS
    block_bytes = layers * 2 * shape["kv_heads"] * tokens_per_block * shape["head_dim"] * element
    return {
        "images": pack_images(kernels, names, tokens_per_block),
        "visual_base": np.array([visual_base], np.int32),
        "mode": np.array([config.gate_mode], np.int32),
        "reduce_max": np.array([config.block_reduce == "max"], np.int32),
        "threshold": np.array([config.gate_threshold], np.float32),
        "memory": np.array([config.memory], np.float32),
        "order": np.array([orders], np.int32),
        "moved_from": np.array([config.scoring_layer], np.int32),
        "block_bytes": np.array([block_bytes], np.int64),
    }


def rope_fields(kernels: Path) -> Fields:
    """DycokeRope: it follows from the kernel alone."""
    return {"images": pack_images(kernels, ROPE_KERNELS, None)}


def pack_images(
    directory: Path, kernels: tuple[str, ...], tokens_per_block: int | None
) -> NDArray[np.uint8]:
    """Images of `kernels` and what a launcher must know of them, in the form of plugin/images.h.

    directory: of kernels/aot.py's manifest. Raises DyCokeError if it holds none of a kernel for
    this block size; `scores` may be absent, which is how one rank is told from several.
    """
    manifest = kernels_manifest(directory)
    wanted = {}
    for name in kernels:
        wanted[name] = name
        if tokens_per_block is not None:
            wanted[f"{name}_b{tokens_per_block}"] = name
    images = [image for image in manifest["images"] if image["name"] in wanted]
    for name in set(kernels) - {wanted[image["name"]] for image in images} - {"scores"}:
        raise DyCokeError(
            f"{directory} has no kernel {name} for {tokens_per_block} tokens per block; run: "
            f"dycoke kernels BUNDLE --tokens-per-block {tokens_per_block} -o {directory}"
        )
    lines, code = [f"dycoke-images 1 {manifest['shape']['dtype']}"], b""
    for image in images:
        data = (directory / image["file"]).read_bytes()
        grid = " ".join(map(str, image["grid"]))
        lines.append(
            f"image {wanted[image['name']]} {image['target']} {image['entry']} "
            f"warps {image['warps']} shared {image['shared_bytes']} "
            f"hidden {image['hidden_parameters']} bytes {len(data)} grid {grid}"
        )
        for parameter in image["parameters"]:
            alignment = "aligned" if parameter["aligned"] else "any"
            lines.append(f"parameter {parameter['name']} {parameter['bytes']} {alignment}")
        lines += [f"constant {name} {value}" for name, value in image["constants"].items()]
        code += data
    text = "\n".join([*lines, "end", ""])
    return np.frombuffer(text.encode() + code, np.uint8)


def kernels_manifest(directory: Path) -> dict[str, Any]:
    """What kernels/aot.py wrote. Raises DyCokeError where it is missing."""
    path = directory / MANIFEST
    if not path.is_file():
        raise DyCokeError(f"{path} is missing; run: dycoke kernels BUNDLE -o {directory}")
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest
