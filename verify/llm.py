"""The exported LLM, run by the native backend, against the source model's logits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..bundle.manifest import Manifest
from ..bundle.paths import LLM
from ..core.dtype import Dtype
from ..runtime.native.ranks import load_ranks
from ..runtime.steps import Chunk, Lane, Runner
from .check import Check

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration

# Largest absolute logit difference allowed, relative to the largest absolute logit: rounding of
# the weights to the bundle's dtype (the arithmetic is fp32 on both sides).
BOUNDS = {Dtype.FP32: 1e-4, Dtype.FP16: 1e-2, Dtype.BF16: 5e-2}
PROMPT_TOKENS, STEPS, BLOCK = 48, 8, 16


@torch.no_grad()
def check_llm(
    bundle: Path, manifest: Manifest, model: LlavaOnevisionForConditionalGeneration
) -> list[Check]:
    """Prefill in two chunks, then decode steps, along the source model's own greedy tokens.

    The prompt is text before and after a run of random visual embeddings. All ranks of a
    tensor-parallel bundle run side by side; the first one's logits are compared.
    """
    source_embedding = model.get_input_embeddings()
    vocab = manifest.visual_token_base
    generator = torch.Generator().manual_seed(0)
    visual = torch.randn(PROMPT_TOKENS // 2, manifest.llm.hidden, generator=generator)
    visual *= float(torch.as_tensor(source_embedding.weight).std())
    ids = torch.randint(min(vocab, 256), (PROMPT_TOKENS,), generator=generator)
    quarter = PROMPT_TOKENS // 4
    ids[quarter:-quarter] = vocab + torch.arange(len(visual))

    inputs = source_embedding(ids.clamp(max=vocab - 1))
    inputs[quarter:-quarter] = visual
    output = model(inputs_embeds=inputs[None], use_cache=True)
    expected, tokens = [output.logits[0, -1].float()], []
    for _ in range(STEPS):
        tokens.append(expected[-1].argmax()[None])
        output = model(
            input_ids=tokens[-1][None], past_key_values=output.past_key_values, use_cache=True
        )
        expected.append(output.logits[0, -1].float())

    blocks = -(-(PROMPT_TOKENS + STEPS) // BLOCK)
    ranks = load_ranks(bundle / LLM, blocks, BLOCK, dtype=torch.float32)
    with ThreadPoolExecutor(len(ranks)) as threads:
        logits, *_ = threads.map(lambda rank: _logits(rank, ids, visual, tokens), ranks)

    checks = []
    for name, rows in (("prefill", slice(0, 1)), ("decode", slice(1, None))):
        mine, theirs = logits[rows], torch.stack(expected[rows])
        mine = mine[:, : theirs.shape[1]]
        difference = float((mine - theirs).abs().max() / theirs.abs().max())
        bound = BOUNDS[manifest.llm.dtype]
        checks.append(
            Check(
                f"llm {name} logits", difference <= bound, difference, bound, "of the largest value"
            )
        )
    return checks


def _logits(runner: Runner, ids: Tensor, visual: Tensor, tokens: list[Tensor]) -> Tensor:
    """fp32 [1 + steps, vocab]: after the prompt, and after each of the tokens int64 [1]."""
    blocks, prompt, first = list(range(runner.layout.num_blocks)), ids.tolist(), len(ids) // 4
    runner.prefill(Chunk(prompt[:first], 0, blocks, visual, last=False))
    after_prompt = runner.prefill(Chunk(prompt[first:], first, blocks, visual, last=True))
    assert after_prompt is not None
    rows = [after_prompt.logits]
    for step, token in enumerate(tokens):
        lane = Lane(int(token), len(prompt) + step + 1, len(prompt), blocks)
        rows.append(runner.decode([lane]).logits)
    return torch.cat(rows)
