"""Where things lie in a bundle: the names of its files and folders, once."""

from __future__ import annotations

from pathlib import Path

MANIFEST = "bundle.json"  # what makes a directory a bundle
VISION_GRAPH = "vision_ttm.onnx"
FRAMES, VISUAL_EMBEDS = "frames", "visual_embeds"  # the input and the output of that graph
VISION_WEIGHTS = "vision.safetensors"  # what the graph's initializers point into
VISION_FILES = (VISION_GRAPH, VISION_WEIGHTS, "vision_ttm.onnx.data")  # the last: of 0.1.0
LLM = "llm"  # a TensorRT-LLM checkpoint: its configuration and one file per rank
LLM_CONFIG = "config.json"
TOKENIZER = "tokenizer"
TOKENIZER_FILE = "tokenizer.json"
KERNELS = "kernels"  # images, and their manifest (kernels/aot.py)
ENGINES = "engines"  # a folder each, with its record
RECORD = "record.json"
VISION_PLAN = "vision_ttm.plan"
RUNTIME_CACHE = "vision_ttm.runtime-cache"  # kernels compiled on the GPU; no part of a record
LLM_ENGINE = "llm"


def rank_file(rank: int) -> str:
    return f"rank{rank}.safetensors"


def engine_directory(bundle: Path, target: str) -> Path:
    """What `dycoke build --target` made."""
    return bundle / ENGINES / target


def rtx_directory(bundle: Path) -> Path:
    """What `dycoke build --vision rtx` made: one engine for several GPUs."""
    return bundle / ENGINES / "rtx"
