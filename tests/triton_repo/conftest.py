"""One real server per test process, on the demo model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.engines.cpu import build_cpu
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.runtime.pipeline import Pipeline
from dycoke_trt.triton_repo.launcher import RunningServer, serving
from dycoke_trt.triton_repo.repository import write_repository

# With blocks of one token the product's block selection is exactly the oracle's token selection.
CONFIG = DyCokeConfig(k=0.5, l=2, p=0.5, granularity="token")
POOL_BLOCKS = 16_384
SERVER_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}  # two cores and six models


@dataclass
class Server:
    """The running server and the same bundle in this process."""

    running: RunningServer
    pipeline: Pipeline

    @property
    def grpc(self) -> str:
        return self.running.grpc

    @property
    def http(self) -> str:
        return self.running.http

    @property
    def metrics(self) -> str:
        return self.running.metrics


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("server")
    bundle = folder / "bundle"
    config = DyCokeConfig(k=CONFIG.k, l=CONFIG.l, p=CONFIG.p)
    export_bundle(MODEL_DIR, bundle, config, dtype="float32", max_frames=32)
    build_cpu(bundle, kv_tokens=POOL_BLOCKS, tokens_per_block=1, max_batch=16)
    repository = write_repository(bundle, folder / "repository", threads=1)
    with serving(repository, environment=SERVER_ENVIRONMENT) as running:
        yield Server(running, Pipeline.from_record(bundle))
