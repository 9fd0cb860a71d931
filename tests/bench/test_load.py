"""The load generator's figures, on made-up requests."""

from __future__ import annotations

import pytest
from dycoke_trt.bench.load import Load, Sent, summarise_load
from dycoke_trt.core.errors import DyCokeError


def test_percentiles_and_rates_leave_failed_requests_out() -> None:
    done = [Sent(0.0, 0.1 * (i + 1), 1.0 + i, 4, [0.02] * 3) for i in range(5)]
    done.append(Sent(0.0, total=9.0, error="refused"))
    summary = summarise_load(Load(6, 2), done, 10.0)
    assert (summary["sent"], summary["answered"], summary["errors"]) == (6, 5, {"refused": 1})
    assert summary["ttft"]["p50"] == pytest.approx(0.3)
    assert summary["end_to_end"]["p50"] == pytest.approx(3.0)
    assert summary["inter_token"]["p99"] == pytest.approx(0.02)
    assert summary["requests_per_second"] == 0.5
    assert summary["tokens_per_second"] == 2.0


def test_nothing_answered_has_no_percentiles() -> None:
    summary = summarise_load(Load(1), [Sent(0.0, error="gone")], 1.0)
    assert summary["ttft"] is summary["inter_token"] is summary["end_to_end"] is None


@pytest.mark.parametrize("wrong", [{"requests": 0}, {"concurrency": 0}, {"rate": 0.0}])
def test_loads_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(DyCokeError, match="allowed"):
        Load(**{"requests": 1, **wrong})
