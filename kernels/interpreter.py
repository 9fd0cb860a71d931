"""Whether kernels run in Triton's interpreter, and repairs: of its use of numpy, of its speed."""

from __future__ import annotations

import inspect
from functools import cache
from types import ModuleType
from typing import Any

import triton

INTERPRETED = bool(triton.knobs.runtime.interpret)  # TRITON_INTERPRET=1, read when triton loads


def repair_index() -> None:
    """Lets a scalar bound a range: the interpreter calls int() on an array of one element for that,
    which numpy refuses from 2.4 on."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def repaired(tensor: Any, *scope: Any) -> None:  # triton 3.6 undoes patches by a scope
        patch(tensor, *scope)
        assign = scope[0].set_attr if scope else setattr
        assign(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = repaired


def look_up_builtins_once() -> None:
    """The interpreter reads and sorts all members of its language at every call of a device
    function, to replace the few that are builtins: a third of the time of a small kernel."""
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    @cache
    def names(package: ModuleType | type) -> list[str]:
        return [name for name, member in inspect.getmembers(package) if is_builtin(member)]

    def patch_builtin(package: ModuleType | type, *rest: Any) -> None:
        for name in names(package):
            if is_builtin(member := getattr(package, name)):  # not replaced yet
                interpreter._patch_attr(package, name, member, *rest)

    interpreter._patch_builtin = patch_builtin


if INTERPRETED:
    repair_index()
    look_up_builtins_once()
