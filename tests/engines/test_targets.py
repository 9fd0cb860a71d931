"""The contract of a target: what each takes, and an option that none would use."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from dycoke_trt.cli.build import build
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.engines.targets import TARGETS, find_target

SIZES = {"tokens_per_block", "max_batch"}
ENGINES = {"kv_fraction", "profile", "plugin_interface", "plugin"}
TAKES = {
    ("cpu", None): {"kv_tokens", *SIZES},
    ("cuda", None): {"kv_tokens", "kv_fraction", *SIZES},
    ("h100", None): {"dry_run", "model", "tp", "max_frames", *ENGINES, *SIZES},
    ("this-gpu", "tensorrt"): {"dry_run", "model", "tp", "max_frames", *ENGINES, *SIZES},
    ("l4", "rtx"): {"strip_weights"},
}
VALUES: dict[str, Any] = {
    "kv_tokens": 64, "kv_fraction": 0.5, "tokens_per_block": 16, "max_batch": 2, "dry_run": True,
    "model": "llava-ov-7b", "tp": 2, "max_frames": 8, "profile": "latency",
    "plugin_interface": "v2", "plugin": Path("x.so"), "strip_weights": True,
}  # fmt: skip


def test_the_command_has_every_option_and_no_other() -> None:
    others = {"bundle", "target", "vision", "as_json"}
    assert set(inspect.signature(build).parameters) - others == set(VALUES)
    assert set.union(*TAKES.values()) == set(VALUES)


@pytest.mark.parametrize(("name", "vision"), TAKES)
def test_each_target_takes_its_options_and_refuses_the_others(
    name: str, vision: str | None
) -> None:
    taken = TAKES[name, vision]
    target = find_target([name], vision, {option: VALUES[option] for option in taken})
    assert set(target.options) == taken
    asked = f"--vision {vision}" if vision == "rtx" else f"--target {name}"
    for option in VALUES.keys() - taken:
        with pytest.raises(DyCokeError) as caught:
            build(Path("b"), [name], vision, **{option: VALUES[option]})
        flag, value = "--" + option.replace("_", "-"), VALUES[option]
        named = flag if value is True else f"{flag} {value}"
        assert str(caught.value).startswith(f"{named} has no effect with {asked}")


def test_every_name_has_a_file() -> None:
    for name in TARGETS:
        assert callable(find_target([name], None, {}).build)
    with pytest.raises(DyCokeError, match=r"unknown target 'tpu'; allowed: cpu, cuda, a100, .*gpu"):
        find_target(["tpu"], None, {})
