"""How long prompt and answer may be together, for whoever has to know before the LLM step does."""

from __future__ import annotations

from dataclasses import dataclass

from ..bundle.manifest import Manifest
from ..bundle.record import EngineRecord
from ..core.errors import DyCokeError
from .request import check_length


@dataclass(frozen=True)
class Capacity:
    """positions: the longest sequence; longest_prompt: of it; num_blocks: of the KV pool."""

    positions: int
    longest_prompt: int
    num_blocks: int
    tokens_per_block: int

    @classmethod
    def of_record(cls, manifest: Manifest, record: EngineRecord) -> Capacity:
        positions = int(record.options.get("max_seq_len", manifest.llm.max_positions))
        return cls(
            positions,
            int(record.options.get("max_input_len", positions)),
            record.kv_tokens // record.tokens_per_block,
            record.tokens_per_block,
        )

    def check(self, prompt: int, max_tokens: int) -> None:
        """Raises DyCokeError, as the LLM step would, for tokens that never fit."""
        if prompt > self.longest_prompt:
            raise DyCokeError(
                f"the prompt has {prompt} tokens, the engine takes {self.longest_prompt}; use "
                "fewer frames or a shorter question"
            )
        check_length(
            prompt,
            max_tokens,
            positions=self.positions,
            num_blocks=self.num_blocks,
            tokens_per_block=self.tokens_per_block,
        )
