"""The same plugins by the compiled C++ library: made from the recorded fields, enqueued on the
recorded inputs, its launches run in the interpreter (tests/engines/plugin/inside)."""

from __future__ import annotations

import numpy as np
import torch
from dycoke_trt.engines.plugin_nodes import ROPE, SCORE, SELECT
from dycoke_trt.tests.engines.network.evaluate import Plugin as Node
from dycoke_trt.tests.engines.network.recording import RecordedLayer
from dycoke_trt.tests.engines.plugin.inside.life import Plugin, World, load
from dycoke_trt.tests.engines.plugin.inside.test_numerics import Interpreter, counted
from torch import Tensor


class LibraryPlugins:
    """folder: of the images, for their constants; a context of an engine begins with it."""

    def __init__(self, folder: str) -> None:
        self.world: World = load()
        self.world.reset()
        self.world.run = Interpreter(folder)
        self._made: dict[str, Plugin] = {}
        self._before = counted()

    def plugins(self) -> dict[str, Node]:
        return dict.fromkeys((SCORE, SELECT, ROPE), self._run)

    def counts(self) -> list[int]:
        """Rows by decision; the plugins are gone then, which is when all are published."""
        for plugin in self._made.values():
            plugin.destroy()
        self.world.run = None
        return [now - then for now, then in zip(counted(), self._before, strict=True)]

    def _run(self, layer: RecordedLayer, inputs: list[Tensor]) -> list[Tensor]:
        if layer.name not in self._made:
            assert layer.plugin is not None
            self._made[layer.name] = self.world.attached(layer.plugin, layer.values)
        arrays: list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]
        arrays = [t.contiguous().numpy() for t in inputs]
        status, outputs = self._made[layer.name].enqueue(*arrays)
        assert status == 0, self.world.messages
        return [torch.from_numpy(array) for array in outputs]
