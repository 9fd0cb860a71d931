"""Which tensors reach which plugin, in which order: our wiring, with nothing of TensorRT under it.

The stand-ins below say nothing about TensorRT-LLM, which has not run this.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.engines import llm_nodes
from dycoke_trt.engines.plugin_nodes import ROPE_INPUTS, SCORE_INPUTS, SELECT_INPUTS

SOURCES = Path(llm_nodes.__file__).parent / "plugin"
NAMES = {*ROPE_INPUTS, *SCORE_INPUTS, *SELECT_INPUTS} - {"cos_sin", "input_ids", "keep_table"}
CALL = {name: f"<{name}>" for name in NAMES} | {"rotary_cos_sin": "<cos_sin>"}


@pytest.mark.skipif(not SOURCES.is_dir(), reason="needs engines/plugin")
@pytest.mark.parametrize(
    ("source", "inputs"),
    [("rope.cpp", ROPE_INPUTS), ("score.cpp", SCORE_INPUTS), ("select.cpp", SELECT_INPUTS)],
)
def test_inputs_are_those_of_the_library(source: str, inputs: tuple[str, ...]) -> None:
    text = (SOURCES / source).read_text()
    declared = text[text.index("inputs_ = ") :]
    names = re.findall(r'\{"(\w+)", ', declared[: declared.index("};")])
    assert tuple(names) == inputs


class Wiring:
    """Nodes of a network of 5 layers on `ranks` GPUs, and what was added to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
        self.added: list[tuple[str, dict[str, Any], list[Any]]] = []
        fields: dict[str, Any] = {
            "score_fields": lambda _kernels, block, *, layer: {"layer": layer, "block": block},
            "select_fields": lambda _kernels, _block, config, *, layers, visual_base: {
                "mode": config.gate, "layers": layers, "visual_base": visual_base
            },
            "rope_fields": lambda _kernels: {},
        }  # fmt: skip
        for name, made in fields.items():  # the images that they read are not needed here
            monkeypatch.setattr(llm_nodes, name, made)
        functional = SimpleNamespace(constant=lambda table: f"<keep_table of {len(table)}>")
        monkeypatch.setitem(sys.modules, "tensorrt_llm", SimpleNamespace(functional=functional))
        monkeypatch.setitem(sys.modules, "tensorrt_llm.functional", functional)
        monkeypatch.setattr(llm_nodes.PluginNodes, "_add", staticmethod(self.add))
        monkeypatch.setattr(llm_nodes, "_sum_over_ranks", lambda s, group: f"sum {s} {group}")
        self.ranks = ranks
        self.nodes = llm_nodes.PluginNodes(
            DyCokeConfig(l=3), Path("kernels"), "<input_ids>", layers=5, visual_base=100,
            tokens_per_block=32, max_seq_len=320, tp_group=[0, 1] if ranks == 2 else None,
            interface="v3",
        )  # fmt: skip

    def add(self, name: str, fields: dict[str, Any], inputs: list[Any]) -> list[Any]:
        self.added.append((name, fields, inputs))
        outputs = {"DycokeRope": 1, "DycokeSelect": 2, "DycokeScore": 3 if self.ranks == 1 else 1}
        return [f"{name}.{i}" for i in range(outputs[name])]


@pytest.mark.parametrize("order", ["raster", "importance"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_scores_reach_the_selection(
    monkeypatch: pytest.MonkeyPatch, ranks: int, order: str
) -> None:
    wiring = Wiring(monkeypatch, ranks)
    after = "<attention>" if order == "importance" else None
    assert wiring.nodes.select(CALL, after) == ("DycokeSelect.0", "DycokeSelect.1")
    (score, score_fields, score_inputs), (select, select_fields, select_inputs) = wiring.added
    assert (score, select) == ("DycokeScore", "DycokeSelect")
    assert score_fields == {"layer": 2, "block": 32}
    assert score_inputs[:3] == ["<qkv>", "<cos_sin>", "<sequence_length>"]
    assert select_fields == {"mode": "reuse", "layers": 5, "visual_base": 100}
    assert select_inputs[0] == "<input_ids>"
    assert select_inputs[4] == "<keep_table of 75>"
    last = {
        1: ["DycokeScore.0", "DycokeScore.1", "DycokeScore.2"],
        2: ["sum DycokeScore.0 [0, 1]"],
    }
    assert select_inputs[8:] == [*last[ranks], *([after] if after else [])]


def test_rotation_uses_true_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    wiring = Wiring(monkeypatch, 1)
    assert wiring.nodes.rotate(CALL) == "DycokeRope.0"
    assert wiring.added[0][2] == [
        "<qkv>", "<cos_sin>", "<sequence_length>", "<context_lengths>", "<host_request_types>"
    ]  # fmt: skip
