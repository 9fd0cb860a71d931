"""A server on a bundle in one step, for whoever wants to ask it and not to keep it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..bundle.writing import temporary_folder
from ..runtime.limits import RequestLimits
from .launcher import RunningServer, serving
from .repository import write_repository
from .tritonserver import TritonServer, find_tritonserver


@contextmanager
def serving_bundle(
    bundle: Path,
    *,
    tritonserver: TritonServer | None = None,
    threads: int = 0,
    requests: RequestLimits | None = None,
    change: Callable[[Path], None] = lambda _: None,
    **options: Any,
) -> Iterator[RunningServer]:
    """A server while the block runs, on what `dycoke build --target cpu` made of `bundle`.

    threads, requests: as in `write_repository`. change: is given the model repository, which is a
    temporary one, before the start. options: of `serving`. Raises DyCokeError as these do.
    """
    triton = tritonserver or find_tritonserver()
    with temporary_folder("dycoke-models-") as folder:
        repository = write_repository(
            bundle,
            folder.resolve() / "models",
            triton_version=triton.version,
            threads=threads,
            requests=requests,
        )
        change(repository)
        with serving(repository, tritonserver=triton, **options) as server:
            yield server
