"""The exported LLM, run by the native backend, against the source model's logits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..bundle.manifest import Manifest
from ..core.pool import encode_table
from ..runtime.native.model import Qwen2
from ..runtime.native.weights import load_weights
from .check import Check

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration

# Largest absolute logit difference allowed, relative to the largest absolute logit: rounding of
# the weights to the bundle's dtype (the arithmetic is fp32 on both sides).
BOUNDS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
PROMPT_TOKENS, STEPS, BLOCK = 48, 8, 16


@torch.no_grad()
def check_llm(
    bundle: Path, manifest: Manifest, model: LlavaOnevisionForConditionalGeneration
) -> list[Check]:
    """Prefill in two chunks, then decode steps, along the source model's own greedy tokens.

    The prompt is text before and after a run of random visual embeddings.
    """
    config, weights = load_weights(bundle / "llm", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    visual = torch.randn(PROMPT_TOKENS // 2, config.hidden, generator=generator)
    visual *= float(weights.embedding.std())
    ids = torch.randint(min(config.vocab, 256), (PROMPT_TOKENS,), generator=generator)
    quarter = PROMPT_TOKENS // 4
    ids[quarter:-quarter] = config.vocab + torch.arange(len(visual))

    native = Qwen2(config, weights, -(-(PROMPT_TOKENS + STEPS) // BLOCK), BLOCK)
    table = encode_table(torch.arange(native.layout.num_blocks)[None], config.layers).long()
    embedded = native.embed(ids, visual)
    native.prefill(embedded[:quarter], table[0], 0)
    found = [native.logits(native.prefill(embedded[quarter:], table[0], quarter))[0]]

    source_embedding = model.get_input_embeddings()
    inputs = source_embedding(ids.clamp(max=config.vocab - 1))
    inputs[quarter:-quarter] = visual
    output = model(inputs_embeds=inputs[None], use_cache=True)
    expected = [output.logits[0, -1].float()]
    for step in range(STEPS):
        token = expected[-1].argmax()[None]
        output = model(
            input_ids=token[None], past_key_values=output.past_key_values, use_cache=True
        )
        expected.append(output.logits[0, -1].float())
        lengths = torch.tensor([PROMPT_TOKENS + step + 1])
        found.append(native.logits(native.decode(native.embed(token), table, lengths))[0])

    checks = []
    for name, rows in (("prefill", slice(0, 1)), ("decode", slice(1, None))):
        mine, theirs = torch.stack(found[rows]), torch.stack(expected[rows])
        mine = mine[:, : theirs.shape[1]]
        difference = float((mine - theirs).abs().max() / theirs.abs().max())
        bound = BOUNDS[manifest.llm.dtype]
        checks.append(
            Check(
                f"llm {name} logits", difference <= bound, difference, bound, "of the largest value"
            )
        )
    return checks
