"""Whether kernels run in Triton's interpreter, and a repair that it needs beside a recent numpy."""

from __future__ import annotations

from typing import Any

import triton

INTERPRETED = bool(triton.knobs.runtime.interpret)  # TRITON_INTERPRET=1, read when triton loads


def repair_index() -> None:
    """Lets a scalar bound a range: triton 3.6 calls int() on an array of one element for that,
    which numpy refuses from 2.4 on."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def repaired(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = repaired


if INTERPRETED:
    repair_index()
