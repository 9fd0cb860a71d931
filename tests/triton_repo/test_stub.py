"""The process that runs a model has libraries of its own to find."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.triton_repo import tritonserver


def test_a_stub_that_does_not_load_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beside Debian's python3 without libpython3.11: the server itself would wait for ever."""
    server = tritonserver.find_tritonserver()
    wheel = tritonserver._wheel()
    copy = tmp_path / "tritonserver"
    shutil.copytree(wheel / "python_backend_stubs", copy / "python_backend_stubs")
    shutil.copytree(wheel / "backends" / "python", copy / "backends" / "python")
    monkeypatch.setattr(tritonserver, "_wheel", lambda: copy)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(wheel.parent.parent / "nvidia_pytriton.libs"))
    with server.backends():
        pass
    for stub in copy.glob("python_backend_stubs/*/triton_python_backend_stub"):
        stub.write_bytes(stub.read_bytes().replace(b"libpython3.", b"libpythonX."))
    with (
        pytest.raises(
            DyCokeError, match=r"libpythonX\..*: cannot open .*apt-get install libpython3"
        ),
        server.backends(),
    ):
        pass
