"""One server per test session (and worker)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dycoke_trt.tests.triton_repo.small import write_small_repository
from dycoke_trt.triton_repo.launcher import RunningServer, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two small models that answer in the client's tensors; provisional for the docs' test."""
    repository = write_small_repository(tmp_path_factory.mktemp("small") / "repository")
    with serving(repository) as running:
        yield running
