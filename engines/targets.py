"""What `dycoke build` builds for: a row per target, and what a target says of itself.

A target is a file of this folder with `TARGET`, and a row of TARGETS here. Files are imported when
their target is asked for: some need torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from ..core.errors import DyCokeError
from .plan_report import PlanReport
from .target_gpus import GPU_NAMES, THIS_GPU

TARGETS = {  # a name of --target: the file that builds for it
    "cpu": "cpu",
    "cuda": "cuda",
    **dict.fromkeys((*GPU_NAMES, THIS_GPU), "tensorrt"),
}
VISIONS = ("tensorrt", "rtx")  # of --vision: files too; the latter is chosen by it alone


@dataclass(frozen=True)
class Target:
    """What one file builds.

    build: called with the bundle (None with an option that stands for it), the names of --target
    and the options that were given; returns a line that says what was written, or the plan.
    takes: the function whose keyword arguments are the options of `dycoke build` that this target
    takes, and whose defaults are theirs. several: one build may serve several names. nature: said
    where an option is refused; instead: of such an option, what to do.
    """

    build: Callable[..., str | PlanReport]
    takes: Callable[..., Any]
    nature: str = ""
    instead: Mapping[str, str] = field(default_factory=dict)
    several: bool = False

    @property
    def options(self) -> Mapping[str, Any]:
        """Names and defaults of the options that it takes."""
        return {
            name: parameter.default
            for name, parameter in inspect.signature(self.takes).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }


def check_name(name: str) -> None:
    """Raises DyCokeError, listing the names, for one that no target has."""
    if name not in TARGETS:
        raise DyCokeError(f"unknown target {name!r}; allowed: {', '.join(TARGETS)}")


def find_target(names: Sequence[str], vision: str | None, given: Mapping[str, Any]) -> Target:
    """The target of these names of --target, or of --vision, which takes the options `given`.

    Raises DyCokeError for names that are missing, unknown or too many, a vision step that does not
    go with them, and an option that would have no effect: its name, its value, what to do instead.
    """
    if vision not in (None, *VISIONS):
        raise DyCokeError(f"--vision {vision!r} is not allowed; allowed: {', '.join(VISIONS)}")
    if not names:
        example = "--vision rtx --target rtx4090" if vision == "rtx" else "--target cpu"
        raise DyCokeError(f"--target is missing; run: dycoke build BUNDLE {example} (or a GPU)")
    for name in names:
        check_name(name)
    file, asked = TARGETS[names[0]], f"--target {names[0]}"
    if vision == "rtx":
        file, asked = vision, f"--vision {vision}"
    if vision not in (None, file):
        raise DyCokeError(f"--vision {vision} has no effect with {asked}")
    target: Target = import_module(f".{file}", __package__).TARGET
    if len(names) > 1 and not target.several:
        raise DyCokeError(
            f"--target {' --target '.join(names)}: only --vision rtx builds for several GPUs"
        )
    for name, value in given.items():
        if name not in target.options:
            option = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
            hint = f"; {target.instead[name]}" if name in target.instead else ""
            raise DyCokeError(f"{option} has no effect with {asked}{target.nature}{hint}")
    return target
