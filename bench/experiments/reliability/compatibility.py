"""Test 9: an engine or bundle that does not fit is refused at once, in a line that says why."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ....bundle.files import describe_parts, open_bundle
from ....bundle.paths import ENGINES, LLM, RECORD, VISION_GRAPH, engine_directory, rank_file
from ....bundle.record import EngineRecord, Installed, read_record, write_record
from ....core.errors import DyCokeError
from ....triton_repo.repository import write_repository
from .outcome import Outcome
from .stage import Stage

CRITERION = "each of 10 mismatches is refused in < 1 s by an error that names it"
_HERE = Installed(sm=90, tensorrt="10.14.1", tensorrt_llm="1.2.1", plugin_abi=1)
Check = Callable[[Path], None]


def run(stage: Stage, quick: bool) -> Outcome:  # noqa: ARG001 (takes a second)
    assert stage.bundle is not None
    cases: list[tuple[str, Check, str]] = [
        ("other GPU", _engine(sm=80), "sm_80"),
        ("other TensorRT", _engine(tensorrt="9.3.0"), "9.3.0"),
        ("other TensorRT-LLM", _engine(tensorrt_llm="0.17"), "0.17"),
        ("other plugin ABI", _engine(plugin_abi=999), "999"),
        ("truncated plan", _truncated_plan, "bytes"),
        ("other bundle", _serve(_other_bundle), "bundle"),
        ("other DyCoke settings", _serve(_other_settings), "bundle"),
        ("truncated record", _serve(_truncate(f"{ENGINES}/cpu/{RECORD}")), "record.json"),
        ("truncated weights", _serve(_truncate(f"{LLM}/{rank_file(0)}")), "rank0.safetensors"),
        ("truncated vision graph", _serve(_truncate(VISION_GRAPH)), "vision_ttm.onnx"),
    ]
    slowest = 0.0
    wrong: list[str] = []
    for name, check, part in cases:
        with TemporaryDirectory(prefix="dycoke-compatibility-") as folder:
            bundle = Path(folder) / "bundle"
            shutil.copytree(stage.bundle, bundle)
            begun = time.perf_counter()
            try:
                check(bundle)
                wrong.append(f"{name}: accepted")
            except DyCokeError as error:
                if part not in str(error) or "\n" in str(error):
                    wrong.append(f"{name}: {error}")
            slowest = max(slowest, time.perf_counter() - begun)
    figures: dict[str, Any] = {
        "cases": len(cases),
        "accepted or unclear": len(wrong),
        "slowest, s": round(slowest, 3),
    }
    return Outcome(
        not wrong and slowest < 1,
        figures,
        "; ".join(wrong)[:600],
        needs_gpu="no TensorRT has refused a plan: the records that stand before it did",
    )


def _serve(change: Callable[[Path], None]) -> Check:
    """What `dycoke serve` looks at first."""

    def check(bundle: Path) -> None:
        change(bundle)
        write_repository(bundle, bundle.parent / "models")

    return check


def _record(bundle: Path, **values: Any) -> Path:
    """An engine directory with a plan of TensorRT's, as far as a record goes."""
    engines = engine_directory(bundle, "h100")
    engines.mkdir()
    (engines / "vision.plan").write_bytes(b"plan" * 1000)
    built = read_record(engine_directory(bundle, "cpu"), open_bundle(bundle), bundle)
    fits = {
        "target": "h100",
        "backend": "trtllm",
        "bundle_hash": open_bundle(bundle).identity,
        "sm": _HERE.sm,
        "tensorrt": _HERE.tensorrt,
        "tensorrt_llm": _HERE.tensorrt_llm,
        "plugin_abi": _HERE.plugin_abi,
        "files": describe_parts(engines),
    }
    write_record(engines, EngineRecord(**{**built.model_dump(), **fits, **values}))
    return engines


def _engine(**values: Any) -> Check:
    def check(bundle: Path) -> None:
        read_record(_record(bundle, **values), open_bundle(bundle), bundle, installed=_HERE)

    return check


def _truncated_plan(bundle: Path) -> None:
    engines = _record(bundle)
    read_record(engines, open_bundle(bundle), bundle, installed=_HERE)  # fits
    (engines / "vision.plan").write_bytes(b"plan" * 999)
    read_record(engines, open_bundle(bundle), bundle, installed=_HERE)


def _truncate(name: str) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        content = (bundle / name).read_bytes()
        (bundle / name).write_bytes(content[: len(content) // 2])

    return change


def _other_bundle(bundle: Path) -> None:
    file = engine_directory(bundle, "cpu") / RECORD
    file.write_text(json.dumps({**json.loads(file.read_text()), "bundle_hash": "0" * 64}))


def _other_settings(bundle: Path) -> None:
    file = bundle / "bundle.json"
    manifest = json.loads(file.read_text())
    manifest["dycoke"]["p"] = 0.123
    file.write_text(json.dumps(manifest))
