"""A plan for the stand-in, with the profiles that `dycoke build` gives the real one."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path

from dycoke_trt.bundle.manifest import read_manifest
from dycoke_trt.engines.vision_plan import profile_ranges

FOLDER = Path(__file__).parent  # for sys.path: `tensorrt` is there


def plan_bytes(bundle: Path) -> bytes:
    vision = read_manifest(bundle).vision
    ranges = profile_ranges(vision.image_size, vision.max_frames)
    profiles = [astuple(r) for r in ranges]
    return json.dumps({"bundle": str(bundle.resolve()), "profiles": profiles}).encode()
