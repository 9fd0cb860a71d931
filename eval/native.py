"""The same suite through the exported LLM and the native backend instead of the oracle."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from ..bundle.paths import LLM
from ..core.config import DyCokeConfig
from ..core.counts import tokens_kept
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

POOL_TOKENS = 1024


class NativeAnswerer(Answerer):
    """Answers with a freshly exported LLM; both granularities, any block size."""

    def __init__(self, model_dir: Path, tokens_per_block: int) -> None:
        super().__init__(model_dir, tokens_per_block)
        self._size = tokens_per_block
        with tempfile.TemporaryDirectory() as folder:
            llm = Path(folder) / LLM
            export_llm(open_checkpoint(model_dir), llm, DyCokeConfig.off(), Dtype.FP32)
            self._llm = load_weights(llm)
        self._engines: dict[DyCokeConfig, Scheduler] = {}
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
        self, features: torch.Tensor, question: str, config: DyCokeConfig
    ) -> tuple[Generation, int]:
        visual = self.visual(features, config)
        before, after = (
            self.tokenizer(text).input_ids for text in (prompt_prefix(), prompt_suffix(question))
        )
        base = self._llm[0].vocab
        prompt = [*before, *range(base, base + len(visual)), *after]
        events: list[Event] = []
        self._traced = []
        engine = self._engine(config)
        engine.submit(
            Request("r", prompt, MAX_NEW_TOKENS, events.append, visual, end_ids=self.end_ids)
        )
        engine.run_until_idle()
        tokens = [token for event in events for token in event.tokens]
        # The oracle's tokens include the end token, which the engine does not deliver.
        ended = [min(self.end_ids)] if events[-1].finish == "end" else []
        return Generation(tokens + ended, self.last_steps, None), len(visual)

    def _engine(self, config: DyCokeConfig) -> Scheduler:
        if config not in self._engines:
            llm, weights = self._llm
            pool = POOL_TOKENS // self._size
            runner = cpu_runner(llm, weights, pool, self._size, config)
            limits = EngineLimits(max_batch=1)
            self._engines[config] = Scheduler(runner, limits, self._keep)
        return self._engines[config]

    def _keep(self, _: str, step: StepTrace) -> None:
        self._traced.append(step)


def block_rate(visual_tokens: int, span_start: int, tokens_per_block: int, p: float) -> float:
    """The P at which blocks of this size attend to about as many visual tokens as tokens do at p.

    Blocks at the edges of the span are always attended to, so the interior ones have to give more;
    the answer is a whole number of blocks, as a rate 0 <= rate < 1.
    """
    size = tokens_per_block
    interior = (span_start + visual_tokens) // size - -(-span_start // size)
    if interior < 1:
        return 0.0
    drop = min(interior, round((visual_tokens - tokens_kept(visual_tokens, p)) / size))
    return min(drop / interior, 1 - 2**-20)
