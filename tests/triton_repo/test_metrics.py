"""The LLM step's metrics on a real server, against what the requests did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.demo.shapes import HELD_OUT_SEEDS, make_sample
from dycoke_trt.runtime.protocol import ENSEMBLE, LLM, POSTPROCESSING
from dycoke_trt.runtime.trtllm.counters import MOVES, ROWS
from dycoke_trt.runtime.trtllm.plugin import COUNTERS
from dycoke_trt.tests.support import demo_bundle, until
from dycoke_trt.tests.triton_repo.conftest import CONFIG, SERVER_ENVIRONMENT, Server
from dycoke_trt.tests.triton_repo.streams import ask, metrics, tensor
from dycoke_trt.tests.triton_repo.test_ensemble import question
from dycoke_trt.triton_repo.launcher import serving
from dycoke_trt.triton_repo.repository import write_repository

GATE = "dycoke_gate_decisions_total"
DOCS = Path(__file__).parents[2] / "docs"


def decided(found: dict[str, float]) -> float:
    return sum(v for name, v in found.items() if name.startswith("dycoke_gate_decisions_total/"))


def after_decisions(server: Server, count: float) -> dict[str, float]:
    """The metrics once so many decisions are published, which follows the last response."""

    def published() -> dict[str, float] | None:
        found = metrics(server.metrics)
        settled = decided(found) >= count and found["dycoke_requests_running"] == 0
        return found if settled else None

    found = until(published)
    assert found is not None
    return found


def test_metrics_say_what_a_request_did(server: Server) -> None:
    before = metrics(server.metrics)
    asked = question(make_sample(HELD_OUT_SEEDS[0]), return_num_output_tokens=True)
    reply = ask(server.grpc, ENSEMBLE, asked)
    # One decision per decode step: the first token comes from the prefill, the last is the end.
    wanted = decided(before) + reply.output_tokens
    after = after_decisions(server, wanted)
    assert decided(after) == wanted
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}

    manifest = server.pipeline.manifest
    assert grown["dycoke_visual_tokens_total/in"] == 16 * manifest.vision.tokens_per_frame
    assert grown["dycoke_visual_tokens_total/kept"] == manifest.visual_tokens(16)
    assert grown["dycoke_requests_total/end"] == 1
    assert grown["dycoke_tokens_total"] == reply.output_tokens
    share = grown["dycoke_context_tokens_total/attended"] / grown["dycoke_context_tokens_total/all"]
    assert 1 - CONFIG.p < share < 1  # text is always attended to
    assert grown["dycoke_selection_seconds_total"] > 0
    ((name, value),) = ((n, v) for n, v in after.items() if n.startswith("dycoke_selection_info/"))
    config = manifest.config
    says = (config.p, config.l, config.gate, config.memory, config.order, "block", "sum")
    assert sorted(name.split("/")[1:]) == sorted(map(str, says))
    assert value == 1
    assert grown["dycoke_time_to_first_token_seconds_count"] == 1
    assert after["dycoke_requests_running"] == after["dycoke_requests_waiting"] == 0


def test_refusals_are_counted(server: Server) -> None:
    before = metrics(server.metrics)["dycoke_requests_total/refused"]
    ids = np.array([[1, 10_000]], np.int32)
    asked = {"input_ids": ids, "input_lengths": 2, "request_output_len": 1}
    tensors = [tensor(name, value, "INT32") for name, value in asked.items()]
    assert "10000" in ask(server.grpc, LLM, tensors).error
    assert metrics(server.metrics)["dycoke_requests_total/refused"] == before + 1


def test_page_and_dashboard_name_what_the_server_has(server: Server) -> None:
    found = {name.partition("/")[0] for name in metrics(server.metrics) if "dycoke_" in name}
    families = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
                for name in found}  # fmt: skip
    page = (DOCS / "metrics.md").read_text()
    assert {name for name in families if f"`{name}`" not in page} == set()
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert queries
    for query in queries:
        assert any(name in query for name in families), query


def test_counters_of_plugins_become_metrics(tmp_path: Path) -> None:
    """As where TensorRT-LLM's own backend runs the engine: here this test counts in its place."""
    bundle = demo_bundle(DyCokeConfig())
    repository = write_repository(bundle, tmp_path / "repository", threads=1)
    for folder in repository.iterdir():  # the one that publishes needs none of the others
        if folder.is_dir() and folder.name != POSTPROCESSING:
            shutil.rmtree(folder)
    config = repository / POSTPROCESSING / "config.pbtxt"
    config.write_text(
        config.read_text()
        + 'parameters { key: "publish_counters" value { string_value: "true" } }\n'
    )
    environment = {**SERVER_ENVIRONMENT, COUNTERS: str(tmp_path / "counters.%p.json")}
    names = [f"{GATE}/{name}" for name in ("full", "reuse", "reselect", "unknown")]
    names += ["dycoke_reorders_total", "dycoke_moved_tokens_total"]

    def published(address: str) -> list[float]:
        found = metrics(address)
        return [found[name] for name in names]

    with serving(repository, environment=environment) as running:
        for counts in ([0, 4, 2, 0, 1, 40], [1, 9, 3, 2, 2, 70]):
            rows = dict(zip(ROWS, counts[:4], strict=True))
            moves = dict(zip(MOVES, counts[4:], strict=True))
            (tmp_path / "counters.7.json").write_text(json.dumps({"rows": rows, **moves}))
            until(lambda counts=counts: published(running.metrics) == counts)
