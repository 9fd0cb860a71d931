"""The same suite through the exported LLM and the native backend instead of the oracle."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from ..bundle.paths import LLM
from ..core.config import DyCokeConfig
from ..core.dtype import Dtype
from ..demo.tokenizer import prompt_prefix, prompt_suffix
from ..export.checkpoint import open_checkpoint
from ..export.llm import export_llm
from ..runtime.native.cpu import cpu_runner
from ..runtime.native.weights import load_weights
from ..runtime.request import Event, Request
from ..runtime.scheduler import EngineLimits, Scheduler
from ..runtime.selection import StepTrace, in_raster_order
from .oracle import Generation, Step
from .shapes import MAX_NEW_TOKENS, Answerer
from .study import Setting

POOL_TOKENS = 1024


class NativeAnswerer(Answerer):
    """Answers with a freshly exported LLM; both granularities, any block size.

    tokens_per_block: of a setting that names none.
    """

    def __init__(self, model_dir: Path, tokens_per_block: int) -> None:
        super().__init__(model_dir)
        self._block = tokens_per_block
        with tempfile.TemporaryDirectory() as folder:
            llm = Path(folder) / LLM
            export_llm(open_checkpoint(model_dir), llm, DyCokeConfig.off(), Dtype.FP32)
            self._llm = load_weights(llm)
        self._engines: dict[Setting, Scheduler] = {}
        self._traced: list[StepTrace] = []

    @property
    def last_steps(self) -> list[Step]:
        """Of the last generation, tokens counted as they came."""
        return [
            Step(step.decision, step.similarity, step.kept, step.scores)
            for step in in_raster_order(self._traced)
        ]

    @torch.no_grad()
    def generate(
        self, features: torch.Tensor, question: str, setting: Setting
    ) -> tuple[Generation, int]:
        visual = self.visual(features, setting.config)
        before, after = (
            self.tokenizer(text).input_ids for text in (prompt_prefix(), prompt_suffix(question))
        )
        base = self._llm[0].vocab
        prompt = [*before, *range(base, base + len(visual)), *after]
        events: list[Event] = []
        self._traced = []
        engine = self._engine(setting)
        engine.submit(
            Request("r", prompt, MAX_NEW_TOKENS, events.append, visual, end_ids=self.end_ids)
        )
        engine.run_until_idle()
        tokens = [token for event in events for token in event.tokens]
        # The oracle's tokens include the end token, which the engine does not deliver.
        ended = [min(self.end_ids)] if events[-1].finish == "end" else []
        return Generation(tokens + ended, self.last_steps, None), len(visual)

    def _engine(self, setting: Setting) -> Scheduler:
        if setting not in self._engines:
            llm, weights = self._llm
            size = setting.tokens_per_block or self._block
            runner = cpu_runner(llm, weights, POOL_TOKENS // size, size, setting.config)
            limits = EngineLimits(max_batch=1)
            self._engines[setting] = Scheduler(runner, limits, self._keep)
        return self._engines[setting]

    def _keep(self, _: str, step: StepTrace) -> None:
        self._traced.append(step)
