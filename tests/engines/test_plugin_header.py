"""The plugin's decisions.h is what core/decisions.py says, and no C++ file says it again."""

from __future__ import annotations

import re

from dycoke_trt.core.decisions import Decision, GateMode
from dycoke_trt.engines.plugin_header import HEADER, header


def test_the_header_is_generated_from_core() -> None:
    assert HEADER.read_text() == header(), "run: python -m dycoke_trt.engines.plugin_header"


def test_its_values_are_those_of_the_enums() -> None:
    text = HEADER.read_text()
    for kind in (Decision, GateMode):
        (body,) = re.findall(rf"enum class {kind.__name__} : std::int32_t {{ (.*) }};", text)
        assert dict(re.findall(r"k(\w+) = (\d+)", body)) == {
            member.name.capitalize(): str(member.value) for member in kind
        }


def test_no_other_source_names_the_rows() -> None:
    for source in sorted(HEADER.parent.glob("*.*")):
        if source != HEADER:
            assert not re.search(r'"reused|reselected\\?"', source.read_text()), source.name
