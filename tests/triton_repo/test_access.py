"""What any client may do to a server, on both protocols, and what a key opens; known holes."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpc
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.tests.triton_repo.conftest import Server
from dycoke_trt.triton_repo.access import (
    GRPC_PREFIX,
    HEADER,
    OPENABLE,
    RESTRICTED,
    access_options,
    parse_open,
)
from dycoke_trt.triton_repo.ports import listening
from dycoke_trt.triton_repo.processes import stubs_of
from dycoke_trt.triton_repo.regions import FOLDER, TRITON_PREFIX
from dycoke_trt.triton_repo.repository import parse_version
from dycoke_trt.triton_repo.tritonserver import Ports, TritonServer
from dycoke_trt.triton_repo.weaknesses import WEAKNESSES, advice, http_is_weak, weaknesses_of

HTTP_CALLS: dict[str, dict[str, Any]] = {
    "/v2/systemsharedmemory/region/x/register": {"key": "/x", "offset": 0, "byte_size": 8},
    "/v2/cudasharedmemory/region/x/register": {"raw_handle": {"b64": ""}, "device_id": 0},
    "/v2/logging": {"log_error": False},
    "/v2/trace/setting": {"trace_file": "/tmp/x"},
    "/v2/repository/models/dycoke/unload": {},
    "/v2/repository/index": {},
}
GRPC_CALLS: dict[str, Callable[[grpc.InferenceServerClient], Any]] = {
    "system shared memory": lambda c: c.register_system_shared_memory("x", "/x", 8),
    "CUDA shared memory": lambda c: c.register_cuda_shared_memory("x", b"AAAA", 0, 8),
    "logging": lambda c: c.update_log_settings({"log_error": False}),
    "trace": lambda c: c.update_trace_settings(settings={"trace_level": ["OFF"]}),
    "unload": lambda c: c.unload_model("dycoke"),
    "index": lambda c: c.get_model_repository_index(),
}


def post(address: str, path: str, body: dict[str, Any], **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(
        f"http://{address}{path}", json.dumps(body).encode(), headers=headers
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("path", HTTP_CALLS)
def test_http_refuses_what_rules_the_server(server: Server, path: str) -> None:
    status, text = post(server.http, path, HTTP_CALLS[path])
    assert status == 403
    assert f"expecting header '{HEADER}'" in text
    assert post(server.http, path, HTTP_CALLS[path], **{HEADER: "guessed"})[0] == 403


def test_the_metrics_port_reads_no_body_in_chunks_of_one_byte(server: Server) -> None:
    """CVE-2025-23310 ends servers before 2.59.1 by what HTTP's port does with such a body; the port
    of the metrics has the same library."""
    host, port = server.running.metrics.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(600):
            connection.sendall(b"1\r\nA\r\n" * 1000)
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 405 ")
    with urllib.request.urlopen(f"http://{server.running.metrics}/metrics") as answer:
        assert answer.status == 200


@pytest.mark.parametrize("call", GRPC_CALLS)
def test_grpc_refuses_what_rules_the_server(server: Server, call: str) -> None:
    with (
        grpc.InferenceServerClient(server.grpc) as client,
        pytest.raises(Exception, match=f"restricted, expecting header '{GRPC_PREFIX}{HEADER}'"),
    ):
        GRPC_CALLS[call](client)


def test_the_key_opens_and_asking_needs_none(server: Server) -> None:
    key = server.running.key
    assert post(server.http, "/v2/repository/index", {}, **{HEADER: key})[0] == 200
    with grpc.InferenceServerClient(server.grpc) as client:
        index = client.get_model_repository_index(headers={f"{GRPC_PREFIX}{HEADER}": key})
        assert {model.name for model in index.models} >= {"dycoke", "dycoke_bls"}
        assert client.get_model_config("dycoke_bls").config.parameters["visual_tokens"]
        assert client.get_inference_statistics("dycoke_bls").model_stats
    assert key not in repr(server.running)


def test_regions_have_names_that_newer_servers_do_not_register(server: Server) -> None:
    line = Path(f"/proc/{server.running.pid}/cmdline").read_text().split("\0")
    (option,) = (a for a in line if a.startswith("--backend-config=python,shm-region-prefix-name"))
    prefix = option.rpartition("=")[2]
    assert prefix.startswith(TRITON_PREFIX)
    (repository,) = (a.partition("=")[2] for a in line if a.startswith("--model-repository="))
    models = stubs_of(server.running.pid, Path(repository))
    assert len(list(FOLDER.glob(f"{prefix}*"))) == len(models) + 1  # the lock


def test_what_an_operator_opens() -> None:
    assert parse_open("") == ()
    assert parse_open(" trace, shared-memory") == ("trace", "shared-memory")
    assert parse_open("all") == OPENABLE
    with pytest.raises(DyCokeError, match="--open 'everything' is not allowed"):
        parse_open("everything")
    http, of_grpc = access_options(["trace"], "k", (2, 51, 0))
    assert http == f"--http-restricted-api=shared-memory,model-repository,logging:{HEADER}=k"
    assert of_grpc.startswith("--grpc-restricted-protocol=shared-memory,")
    assert access_options(RESTRICTED, "k", (2, 51, 0)) == []
    assert access_options(RESTRICTED, "k", (2, 71, 0)) == ["--allow-client-shm=true"]


def test_http_stays_on_loopback_where_its_server_can_be_crashed(tmp_path: Path) -> None:
    (tmp_path / "TRITON_VERSION").write_text("2.59.0\n")
    weak = TritonServer(tmp_path / "bin" / "tritonserver", "given")
    everywhere = Ports(host="0.0.0.0")
    assert listening(everywhere, (), weak).http_host == "127.0.0.1"
    line = weak.command(tmp_path, listening(everywhere, (), weak))
    assert "--http-address=127.0.0.1" in line
    assert "--grpc-address=0.0.0.0" in line
    assert listening(everywhere, ("http",), weak) == everywhere
    assert listening(Ports(), (), weak) == Ports()
    (tmp_path / "TRITON_VERSION").write_text("2.71.0\n")
    newer = TritonServer(weak.binary, "given")
    assert listening(everywhere, (), newer) == everywhere


def test_known_holes_by_version() -> None:
    assert all(a.fixed <= b.fixed for a, b in pairwise(WEAKNESSES))
    assert weaknesses_of(parse_version("2.51.0")) == list(WEAKNESSES)
    assert http_is_weak((2, 59, 0))
    assert not http_is_weak((2, 68, 0))
    text = advice((2, 59, 0))
    assert "\n" not in text
    for cve in ("CVE-2025-23310", "23311", "23319", "23320", "23334"):
        assert cve in text
        assert cve not in advice((2, 59, 1))
    assert text.index("CVE-2025-23310") < text.index("not shielded") < text.index("CVE-2025-33201")
    assert advice((2, 71, 0)) == ""
