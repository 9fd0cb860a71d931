"""Whether kernels run in Triton's interpreter, and a repair that it needs beside a recent numpy."""

from __future__ import annotations

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


if INTERPRETED:
    repair_index()
