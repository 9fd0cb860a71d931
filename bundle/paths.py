"""Where things lie in a bundle: the names of its files and folders, once."""

from __future__ import annotations

MANIFEST = "bundle.json"  # what makes a directory a bundle
VISION_GRAPH = "vision_ttm.onnx"
VISION_WEIGHTS = "vision.safetensors"  # what the graph's initializers point into
VISION_FILES = (VISION_GRAPH, VISION_WEIGHTS, "vision_ttm.onnx.data")  # the last: of 0.1.0
LLM = "llm"
TOKENIZER = "tokenizer"
KERNELS = "kernels"
ENGINES = "engines"
VISION_PLAN = "vision_ttm.plan"  # this and the rest: in a folder of ENGINES
RUNTIME_CACHE = "vision_ttm.runtime-cache"  # kernels compiled on the GPU; no part of a record
LLM_ENGINE = "llm"
