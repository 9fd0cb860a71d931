"""Queue and compute time of each model of a server, from Triton's own statistics.

Counters of a server only grow, so a measurement is the difference of two readings. A model that
answers in its own time has computed for Triton once it has taken the request: preprocessing, the
vision step on a CPU and the LLM step in Python. What the last does then is in docs/metrics.md;
`dycoke profile` has the time of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any

from ...core.errors import DyCokeError
from ...runtime.protocol import BLS, ENSEMBLE, LLM, POSTPROCESSING, PREPROCESSING, VISION

Counters = dict[str, dict[str, int]]  # model -> counts and nanoseconds
_ORDER = (ENSEMBLE, BLS, PREPROCESSING, VISION, LLM, POSTPROCESSING)
_COMPUTE = ("compute_input", "compute_infer", "compute_output")


def read_counters(server: str) -> Counters:
    """server: HOST:PORT of its gRPC service. Raises DyCokeError where none answers."""
    from tritonclient.grpc import InferenceServerClient, InferenceServerException

    with closing(InferenceServerClient(server)) as client:
        try:
            reply = client.get_inference_statistics(as_json=True, client_timeout=15.0)
        except InferenceServerException as error:
            raise DyCokeError(
                f"{server}: no Triton server answers over gRPC there ({error.message()}); "
                "to start one: dycoke serve BUNDLE"
            ) from None
    return {model["name"]: _counters(model) for model in reply["model_stats"]}


def _counters(model: Mapping[str, Any]) -> dict[str, int]:
    """JSON of protobuf leaves zeros out and writes 64-bit integers as text."""
    statistics = model.get("inference_stats", {})

    def get(name: str, key: str) -> int:
        return int(statistics.get(name, {}).get(key, 0))

    return {
        "success": get("success", "count"),
        "fail": get("fail", "count"),
        "queue_ns": get("queue", "ns"),
        "compute_ns": sum(get(part, "ns") for part in _COMPUTE),
    }


def grown(before: Counters, after: Counters) -> Counters:
    return {
        model: {key: value - before.get(model, {}).get(key, 0) for key, value in counts.items()}
        for model, counts in after.items()
    }


def add(readings: Iterable[Counters]) -> Counters:
    total: Counters = {}
    for reading in readings:
        for model, counts in reading.items():
            sums = total.setdefault(model, dict.fromkeys(counts, 0))
            for key, value in counts.items():
                sums[key] += value
    return total


def step_rows(counters: Counters) -> list[dict[str, Any]]:
    """Models that ran, in the ensemble's order: counts, and seconds per request of a model."""
    known = [name for name in _ORDER if name in counters]
    others = sorted(set(counters) - set(known))
    rows = []
    for name in (*known, *others):
        counts = counters[name]
        if count := counts["success"]:
            rows.append(
                {
                    "model": name,
                    "count": count,
                    "failed": counts["fail"],
                    "queue": counts["queue_ns"] * 1e-9 / count,
                    "compute": counts["compute_ns"] * 1e-9 / count,
                }
            )
    return rows
