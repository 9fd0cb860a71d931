"""An engine directory as `dycoke build` leaves it, for the stand-in, which reads the bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dycoke_trt.bundle.files import describe_parts
from dycoke_trt.bundle.manifest import read_manifest
from dycoke_trt.bundle.paths import VISION_PLAN
from dycoke_trt.bundle.record import EngineRecord, write_record
from dycoke_trt.engines.build_plan import plan_build
from dycoke_trt.engines.model import model_of_bundle
from dycoke_trt.engines.target_gpus import find_target_gpu
from dycoke_trt.engines.tensorrt import engine_record
from dycoke_trt.tests.tensorrt_standin.plan import plan_bytes

TARGET, BLOCK, BATCH = "h100", 32, 8
FOLDER = Path(__file__).parent  # for sys.path: `tensorrt_llm` is there


def write_engines(bundle: Path, kv_tokens: int = 8192, **changes: Any) -> EngineRecord:
    """Writes bundle/engines/h100; changes: to the record."""
    folder = bundle / "engines" / TARGET
    (folder / "llm").mkdir(parents=True)
    plugins = {"plugin_config": {"tokens_per_block": BLOCK}}
    (folder / "llm" / "config.json").write_text(json.dumps({"build_config": plugins}))
    (folder / "llm/rank0.engine").write_bytes(b"not compiled")
    (folder / VISION_PLAN).write_bytes(plan_bytes(bundle))
    plan = plan_build(
        model_of_bundle(bundle), find_target_gpu(TARGET), tokens_per_block=BLOCK, max_batch=BATCH
    )
    made = engine_record(folder, read_manifest(bundle), plan, "10.14.1", "1.2.1", pruned=True)
    record = made.model_copy(update={"kv_tokens": kv_tokens, **changes})
    write_record(folder, record.model_copy(update={"files": describe_parts(folder)}))
    return record
