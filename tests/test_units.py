"""Units of pytest-xdist name what is there."""

from __future__ import annotations

import re
from pathlib import Path

from dycoke_trt.tests.units import LONG, ON_THE_SERVER, SERVER, UnitScheduling

ROOT = Path(__file__).parents[1]


def test_files_that_ask_one_server_are_one_unit() -> None:
    scheduling = UnitScheduling.__new__(UnitScheduling)
    assert scheduling._split_scope("tests/triton_repo/test_fuzz_models.py::test_x[a::b]") == SERVER
    assert scheduling._split_scope("tests/core/test_ttm.py::test_x") == "tests/core/test_ttm.py"
    asking = re.compile(r"tests\.triton_repo\.conftest import .*\bServer\b")
    folder = (ROOT / SERVER).parent
    files = [path.name for path in folder.glob("test_*.py") if asking.search(path.read_text())]
    assert sorted(files) == sorted(ON_THE_SERVER)


def test_long_units_exist() -> None:
    assert all((ROOT / unit).is_file() for unit in LONG)
