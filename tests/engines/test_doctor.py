"""What doctor says of this machine, of counters, and where it sends people."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from dycoke_trt.cli.doctor import abilities
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.engines.doctor import counters_finding, matching_container
from dycoke_trt.engines.plugin_library import plugin_library
from dycoke_trt.runtime import tensorrt_library
from dycoke_trt.runtime.trtllm.plugin import PLUGIN_ABI
from dycoke_trt.tests.support import dycoke

LIBRARY = b"\x7fELF and dycoke-plugin abi=%d tensorrt=10; and so on" % PLUGIN_ABI


def test_doctor_here() -> None:
    done = dycoke("doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    found = {finding["name"]: finding for finding in report["findings"]}
    assert {"GPU", "TensorRT", "TensorRT-LLM", "plugin", "counters", "Triton server"} <= set(found)
    assert "--llm executor" in found["backend tensorrtllm"]["note"]
    assert found["backend tensorrt"]["status"] == "missing"
    rtx = find_spec("tensorrt_rtx_bindings") is not None
    assert found["TensorRT for RTX"]["status"] == ("ok" if rtx else "missing")
    assert report["works"]["vision engines for other GPUs, here"] == rtx
    assert "Python model" in found["backend tensorrt"]["note"]
    assert report["works"]["answers on the CPU"]
    assert report["containers"][0]["tensorrt_llm"] == "1.2.1"
    assert "UNVERIFIED" in report["containers"][0]["source"]
    shown = dycoke("doctor").stdout
    assert "26.07" in shown
    assert "pip install 'dycoke-trt[kernels]'" in shown


def test_advice_names_what_is_missing() -> None:
    able, advice = abilities({"GPU", "TensorRT", "Polygraphy"})["building engines"]
    assert not able
    assert "needs TensorRT-LLM, plugin" in advice
    assert "26.07-trtllm-python-py3" in advice
    everything = {"GPU", "TensorRT", "TensorRT-LLM", "Polygraphy", "plugin"}
    assert abilities(everything)["building engines"] == (
        True, "dycoke build BUNDLE --target this-gpu"
    )  # fmt: skip


def test_counters(tmp_path: Path) -> None:
    assert counters_finding(None).status == "missing"
    name = str(tmp_path / "counters.%p.json")
    assert counters_finding(name).status == "missing"
    rows = {"full": 1, "reused": 2, "reselected": 3, "unknown": 0}
    for process in ("7", "8"):
        counted = {"rows": rows, "reorders": 1, "moved": 7}
        (tmp_path / f"counters.{process}.json").write_text(json.dumps(counted))
    found = counters_finding(name)
    assert (found.status, found.value) == (
        "ok", "2 full, 4 reused, 6 reselected, 0 unknown, 2 reorders, 14 moved"
    )  # fmt: skip
    (tmp_path / "counters.8.json").write_text(json.dumps({"rows": {**rows, "unknown": 5}}))
    assert counters_finding(name).status == "warning"
    (tmp_path / "counters.8.json").write_text("nonsense")
    assert counters_finding(name).note == "not a counters file"


def test_plugin_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DYCOKE_PLUGIN_LIBRARY", raising=False)
    with pytest.raises(DyCokeError, match=r"no plugin library there; run: dycoke plugin build"):
        plugin_library()
    path = tmp_path / "libdycoke_plugins.so"
    path.write_bytes(b"text")
    monkeypatch.setenv("DYCOKE_PLUGIN_LIBRARY", str(path))
    with pytest.raises(DyCokeError, match="is no shared library"):
        plugin_library()
    path.write_bytes(b"\x7fELF and so on")
    with pytest.raises(DyCokeError, match=f"has plugin ABI None, this release has {PLUGIN_ABI}"):
        plugin_library()
    path.write_bytes(LIBRARY.replace(b"abi=%d" % PLUGIN_ABI, b"abi=1"))
    with pytest.raises(
        DyCokeError, match=f"ABI 1, this release has {PLUGIN_ABI}; run: dycoke plugin build"
    ):
        plugin_library()
    path.write_bytes(LIBRARY)
    assert plugin_library() == path
    monkeypatch.setattr(tensorrt_library, "version_of", lambda *_: "11.1.0")
    with pytest.raises(DyCokeError, match=r"is for TensorRT 10, here it is 11\.1\.0"):
        plugin_library()


def test_the_library_of_this_tensorrt_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DYCOKE_PLUGIN_LIBRARY", raising=False)
    folder = tmp_path / "build" / "plugin"
    folder.mkdir(parents=True)
    for major in (10, 11):
        (folder / f"libdycoke_plugin_trt{major}.so").write_bytes(LIBRARY)
    assert plugin_library().name == "libdycoke_plugin_trt10.so"


def test_containers() -> None:
    container = matching_container("1.2.1", "10.14.1.48")
    assert container is not None
    assert container.tag == "26.07"
    assert matching_container("1.1.0", "10.9.0") is None
