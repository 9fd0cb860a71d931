"""The launcher on a real server: readiness, failed starts, models that die, nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.runtime.client import ask_server
from dycoke_trt.runtime.protocol import BLS, ENSEMBLE
from dycoke_trt.tests.support import DYCOKE, assert_one_line, demo_bundle, dycoke, until
from dycoke_trt.tests.triton_repo.small import write_small_repository
from dycoke_trt.triton_repo import tritonserver
from dycoke_trt.triton_repo.access import HEADER
from dycoke_trt.triton_repo.launcher import RunningServer, serving
from dycoke_trt.triton_repo.ports import choose_ports
from dycoke_trt.triton_repo.processes import stubs_of
from dycoke_trt.triton_repo.regions import own_regions, remove_left_over
from dycoke_trt.triton_repo.server_log import LoadEvent, explain, load_event
from dycoke_trt.triton_repo.supervise import supervise
from dycoke_trt.triton_repo.tritonserver import Ports, find_tritonserver

SHARED_MEMORY = Path("/dev/shm")


def group_members(group: int) -> list[int]:
    """Processes of a group that have not ended (those that nobody collected yet have)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, member = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(member) == group and state != "Z":
            found.append(int(folder.name))
    return found


def regions_of(server: int, repository: Path) -> list[Path]:
    """Shared memory of the server's models: its name is an argument of their processes."""
    names = []
    for stub in stubs_of(server, repository):
        names += Path(f"/proc/{stub.pid}/cmdline").read_text().split("\0")[2:3]
    assert names
    return [SHARED_MEMORY / name for name in names]


def test_serves_reports_and_leaves_nothing(tmp_path: Path) -> None:
    repository = write_small_repository(tmp_path / "models", BLS)
    events: list[LoadEvent] = []
    with serving(repository, on_event=events.append) as server:
        assert events == [(BLS, "loading"), (BLS, "ready")]
        with urllib.request.urlopen(f"http://{server.metrics}/metrics") as metrics:
            assert b"nv_inference_request_success" in metrics.read()
        (stub,) = stubs_of(server.pid, repository)
        assert stub.model == BLS
        regions = regions_of(server.pid, repository)
        assert all(region.exists() for region in regions)
        server.wait(0)
    assert group_members(server.pid) == []
    assert not any(region.exists() for region in regions)
    assert not server.log.exists()


@pytest.mark.parametrize(
    ("initialize", "message"),
    [
        ("raise ValueError('first line\\nno such weights')", "no such weights"),
        ("os.kill(os.getpid(), 9)", "not healthy"),
    ],
)
def test_a_failed_start_names_model_and_error(
    tmp_path: Path, initialize: str, message: str
) -> None:
    repository = write_small_repository(tmp_path / "models", BLS, initialize=initialize)
    with (
        pytest.raises(DyCokeError, match="the server did not start: model dycoke_bls: ") as error,
        serving(repository, log_file=tmp_path / "log"),
    ):
        pass
    assert message in str(error.value)
    assert str(error.value).count("\n") == 0
    assert f"(log: {tmp_path / 'log'})" in str(error.value)
    assert (tmp_path / "log").stat().st_size > 0


def test_a_slow_start_is_ended(tmp_path: Path) -> None:
    repository = write_small_repository(
        tmp_path / "models", BLS, initialize="threading.Event().wait()"
    )
    with (
        pytest.raises(DyCokeError, match="not ready after 0 s"),
        serving(repository, start_timeout=0, log_file=tmp_path / "log"),
    ):
        pass
    assert (
        str(repository)
        not in subprocess.run(
            ["ps", "-eo", "args"], capture_output=True, text=True, check=True
        ).stdout
    )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("model exits", r"model dycoke_bls died \(exit status 3\)"),
        ("model killed", r"model dycoke_bls died \(signal 9\)"),
        ("server killed", r"the server died \(signal 9\)"),
    ],
)
def test_a_death_ends_everything(tmp_path: Path, how: str, message: str) -> None:
    repository = write_small_repository(tmp_path / "models", BLS)
    with serving(repository, log_file=tmp_path / "log") as server:
        regions = regions_of(server.pid, repository)
        if how == "model exits":
            with pytest.raises(DyCokeError, match="the connection was lost"):
                ask_server(server.grpc, "exit")
        else:
            (stub,) = stubs_of(server.pid, repository)
            os.kill(stub.pid if how == "model killed" else server.pid, signal.SIGKILL)
        with pytest.raises(DyCokeError, match=message):
            server.wait(60)
        until(lambda: not group_members(server.pid))
    assert not any(region.exists() for region in regions)


def test_nothing_is_left_if_the_launcher_is_killed(tmp_path: Path) -> None:
    repository = write_small_repository(tmp_path / "models", BLS)
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dycoke_trt.triton_repo.launcher import serving\n"
        "with serving(Path(sys.argv[1]), log_file=Path(sys.argv[2])) as server:\n"
        "    print(server.pid, flush=True)\n"
        "    server.wait()\n"
    )
    command = [sys.executable, "-c", program, str(repository), str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        server = int(launcher.stdout.readline())
        regions = regions_of(server, repository)
        os.kill(server, signal.SIGSTOP)  # hears no SIGTERM
        launcher.kill()
    until(lambda: not group_members(server), seconds=60)
    until(lambda: not any(region.exists() for region in regions), seconds=60)


def test_regions_that_a_killed_server_left_are_removed_at_the_next_start() -> None:
    """Those of a living one stay: all its processes hold the lock."""
    with own_regions() as living:
        program = (
            "import os, sys\n"
            "from dycoke_trt.triton_repo.regions import FOLDER, own_regions\n"
            "with own_regions() as regions:\n"
            "    (FOLDER / f'{regions.prefix}x').touch()\n"
            "    print(regions.prefix, flush=True)\n"
            "    os.kill(os.getpid(), 9)\n"
        )
        dead = subprocess.run(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False
        ).stdout.strip()
        assert (SHARED_MEMORY / f"{dead}x").exists()
        assert remove_left_over() == [dead]
        assert not list(SHARED_MEMORY.glob(f"{dead}*"))
        assert list(SHARED_MEMORY.glob(f"{living.prefix}*"))
    assert not list(SHARED_MEMORY.glob(f"{living.prefix}*"))


def test_a_model_that_hangs_is_noticed(tmp_path: Path) -> None:
    repository = write_small_repository(tmp_path / "models", BLS)
    with serving(repository, log_file=tmp_path / "log", hang_seconds=2) as server:
        (stub,) = stubs_of(server.pid, repository)
        os.kill(stub.pid, signal.SIGSTOP)
        with pytest.raises(DyCokeError, match="model dycoke_bls gave no sign of life for 2 s"):
            server.wait(60)
    assert group_members(server.pid) == []


def post(server: RunningServer, path: str, **headers: str) -> int:
    request = urllib.request.Request(f"http://{server.http}{path}", b"{}", headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_client_that_may_unload_a_model_does_not_end_the_server(tmp_path: Path) -> None:
    repository = write_small_repository(tmp_path / "models")
    explicit = ["--model-control-mode=explicit", "--load-model=*"]
    with serving(repository, log_file=tmp_path / "log", extra=explicit) as server:
        unload = f"/v2/repository/models/{ENSEMBLE}/unload"
        assert post(server, unload) == 403
        assert post(server, unload, **{HEADER: server.key}) == 200
        until(lambda: [stub.model for stub in stubs_of(server.pid, repository)] == [BLS])
        assert ask_server(server.grpc, "Why?", max_tokens=2).text == "one two"
        load = f"/v2/repository/models/{ENSEMBLE}/load"
        assert post(server, load, **{HEADER: server.key}) == 200
        server.wait(2)  # a look at the new process: it is watched too
        (old,) = (s.pid for s in stubs_of(server.pid, repository) if s.model == ENSEMBLE)
        file = repository / ENSEMBLE / "1" / "model.py"
        file.write_text(file.read_text() + "\n# changed\n")
        assert post(server, load, **{HEADER: server.key}) == 200
        until(lambda: old not in [s.pid for s in stubs_of(server.pid, repository)])
        server.wait(2)  # loaded again while the old process served: that has ended since
        (stub,) = (s for s in stubs_of(server.pid, repository) if s.model == ENSEMBLE)
        os.kill(stub.pid, signal.SIGKILL)
        with pytest.raises(DyCokeError, match="model dycoke died"):
            server.wait(60)


def test_a_server_that_fails_is_started_again_a_bounded_number_of_times(tmp_path: Path) -> None:
    repository = write_small_repository(tmp_path / "models", BLS)
    said: list[str] = []
    delays: list[float] = []

    def kill(server: RunningServer) -> None:
        assert ask_server(server.grpc, "Why?", max_tokens=2).text == "one two"
        (stub,) = stubs_of(server.pid, repository)
        os.kill(stub.pid, signal.SIGKILL)

    with pytest.raises(DyCokeError, match=r"died \(signal 9\).*restarted 2 times already"):
        supervise(
            lambda: serving(repository, log_file=tmp_path / "log"),
            restarts=2,
            on_ready=kill,
            say=said.append,
            wait=delays.append,
        )
    assert delays == [1, 2]
    assert "model dycoke_bls died (signal 9)" in said[0]
    assert "restart 1 of 2 in 1 s" in said[0]


def test_a_first_start_that_fails_is_final(tmp_path: Path) -> None:
    repository = write_small_repository(tmp_path / "models", BLS, initialize="raise ValueError(1)")
    with pytest.raises(DyCokeError, match="the server did not start"):
        supervise(
            lambda: serving(repository, log_file=tmp_path / "log"),
            restarts=2,
            on_ready=lambda _: None,
            say=lambda text: pytest.fail(text),
        )


def test_what_a_full_file_system_says_is_one_line() -> None:
    bundle = demo_bundle(DyCokeConfig(k=0.5, l=2, p=0.5))
    ports = [option for name in ("http", "grpc", "metrics") for option in (f"--{name}-port", "0")]
    # No byte can be written, to any file.
    limited = ["prlimit", "--fsize=0", str(DYCOKE), "serve", str(bundle), *ports]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert_one_line(done, "cannot be written (No usable temporary directory", "TMPDIR")


def test_ports_are_chosen_before_anything_loads() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DyCokeError, match=f"port {port} on .* is in use; .* --grpc-port"):
            choose_ports(Ports(0, port, 0))
    chosen = choose_ports(Ports(0, 0, 0))
    assert len({chosen.http, chosen.grpc, chosen.metrics}) == 3
    with pytest.raises(DyCokeError, match="given twice"):
        choose_ports(Ports(chosen.http, chosen.http, 0))
    with pytest.raises(DyCokeError, match="--http-port 70000"):
        choose_ports(Ports(70000, 0, 0))
    with pytest.raises(DyCokeError, match=r"--host 192\.0\.2\.1"):
        choose_ports(Ports(0, 0, 0, "192.0.2.1"))


def test_options_that_the_launcher_sets_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(DyCokeError, match="--http-port=1 cannot be passed on"),
        serving(tmp_path, extra=["--http-port=1"]),
    ):
        pass


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "E1121 09:59:42.0 1 model_lifecycle.cc:642] \"failed to load 'vision_ttm' version 1: "
            'Internal: ValueError: no\\n\\nAt:\\n  /model.py(18): initialize\\n"',
            "model vision_ttm: ValueError: no",
        ),
        (
            "failed to start HTTP service: Unavailable - Socket '0.0.0.0:8000' already in use ",
            "port 8000 on 0.0.0.0 is in use; choose another port (0 takes a free one)",
        ),
        (
            "tritonserver: unrecognized option '--nonesuch'\nUsage: tritonserver [options]\n",
            "tritonserver: unrecognized option '--nonesuch'",
        ),
        (
            'E1127 22:58:08.7 1 server.cc:241] "CudaDriverHelper has not been initialized."\n'
            "terminate called after throwing an instance of 'boost::interprocess::lock_exception'\n"
            "  what():  boost::interprocess::lock_exception\n",
            "it ended by an exception of its own, boost::interprocess::lock_exception; "
            "start it again",
        ),
        (
            'E1127 22:58:08.7 1 server.cc:241] "CudaDriverHelper has not been initialized."\n'
            'I1127 22:58:08.8 1 model_lifecycle.cc:472] "loading: vision_ttm:1"\n',
            'I1127 22:58:08.8 1 model_lifecycle.cc:472] "loading: vision_ttm:1"',
        ),
        ("", "the log is empty"),
    ],
)
def test_logs_are_explained(line: str, reason: str) -> None:
    assert explain(line) == reason


def test_other_lines_are_no_events() -> None:
    assert load_event('I1121 09:59:36.1 1 cuda_memory_manager.cc:117] "CUDA pool disabled"') is None


def test_where_a_server_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DyCokeError, match="no executable file"):
        find_tritonserver(tmp_path / "none")
    binary = tmp_path / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\necho hello\n")
    binary.chmod(0o755)
    given = find_tritonserver(binary)
    assert (given.binary, given.source) == (binary, "given")
    with pytest.raises(DyCokeError, match=r"printed no server_version \(hello\)"):
        assert given.version
    (tmp_path / "TRITON_VERSION").write_text("2.64.0\n")
    assert find_tritonserver(binary).version == "2.64.0"
    monkeypatch.setattr(tritonserver, "CONTAINER_BINARY", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_tritonserver().source == "wheel"
    assert find_tritonserver().version.startswith("2.")
    monkeypatch.setenv("PATH", str(binary.parent))
    assert find_tritonserver().source == "PATH"
    monkeypatch.setattr(tritonserver, "CONTAINER_BINARY", binary)
    assert find_tritonserver().source == "container"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tritonserver, "CONTAINER_BINARY", tmp_path / "none")
    monkeypatch.setattr(tritonserver, "find_spec", lambda _: None)
    with pytest.raises(DyCokeError, match="pip install"):
        find_tritonserver()


def test_serve_until_it_is_told_to_end() -> None:
    bundle = demo_bundle(DyCokeConfig())
    ports = [option for name in ("http", "grpc", "metrics") for option in (f"--{name}-port", "0")]
    command = [str(DYCOKE), "serve", str(bundle), "--threads", "1", *ports, "--", "--log-info=true"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as serve:
        assert serve.stdout is not None
        ready = serve.stdout.readline()
        assert ready.startswith("ready: grpc 127.0.0.1:"), serve.communicate()
        address = ready.split()[2].rstrip(",")
        assert f"dycoke ask --server {address} " in ready
        assert ask_server(address, "Why?", max_tokens=2).output_tokens <= 2
        serve.send_signal(signal.SIGTERM)
        _, errors = serve.communicate(timeout=60)
    assert serve.returncode == 0, errors
    assert "stopped" in errors
    assert "Traceback" not in errors


def test_serve_refuses(tmp_path: Path) -> None:
    free = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    assert_one_line(dycoke("serve", tmp_path, "--target", "tpu"), "unknown target 'tpu'")
    assert_one_line(dycoke("serve", tmp_path, *free), "it is no bundle")
    none = tmp_path / "none"
    bundle = demo_bundle(DyCokeConfig(k=0.5, l=2, p=0.5))
    assert_one_line(dycoke("serve", bundle, *free, "--tritonserver", none), "no executable")
