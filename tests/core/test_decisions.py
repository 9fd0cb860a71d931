"""The numbers and names that engines, files and metrics out there hold."""

from __future__ import annotations

import json

import pytest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.decisions import Decision, GateMode
from dycoke_trt.core.errors import DyCokeError


def test_numbers_never_change() -> None:
    assert {d.name: int(d) for d in Decision} == {
        "FULL": 0, "REUSE": 1, "RESELECT": 2, "UNKNOWN": 3,
    }  # fmt: skip
    assert {m.name: int(m) for m in GateMode} == {"REUSE": 0, "FULL": 1, "ALWAYS": 2, "ONCE": 3}


def test_names_never_change() -> None:
    assert [d.label for d in Decision] == ["full", "reuse", "reselect", "unknown"]
    assert [d.row for d in Decision] == ["full", "reused", "reselected", "unknown"]
    assert [m.label for m in GateMode] == ["reuse", "full", "always", "once"]


@pytest.mark.parametrize("mode", GateMode)
def test_a_configuration_names_its_mode(mode: GateMode) -> None:
    config = DyCokeConfig(gate=mode.label)
    assert config.gate_mode is mode
    assert json.loads(config.to_json())["gate"] == mode.name.lower()


def test_other_modes_are_refused_by_name() -> None:
    for other in ("REUSE", "never", 0):
        with pytest.raises(DyCokeError, match="allowed: reuse, full, always, once"):
            DyCokeConfig(gate=other)  # type: ignore[arg-type]
