"""The native backend on the shapes suite, against the oracle.

    python -m dycoke_trt.bench.experiments.native_accuracy [--samples 500] [-o FILE]

Answer strings equal to the oracle's at token granularity, and for each that differs the smallest
margin (of a logit, the gate or the cut) at its first differing step. What blocks cost is
`dycoke eval --study selection`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from ...core.config import DyCokeConfig
from ...core.counts import tokens_kept
from ...demo import MODEL_DIR
from ...demo.shapes import HELD_OUT_SEEDS, make_sample
from ...eval.native import NativeAnswerer
from ...eval.oracle import Generation, Step, generate
from ...eval.shapes import MAX_NEW_TOKENS, Answerer
from ...eval.study import Setting
from ..machine import machine

TOKEN = DyCokeConfig(granularity="token")


def compare(samples: int) -> dict[str, Any]:
    """Answer strings of native and oracle at token granularity, K = P = 0.7."""
    oracle, native = Answerer(MODEL_DIR), NativeAnswerer(MODEL_DIR, 8)
    same, differences = 0, []
    for seed in HELD_OUT_SEEDS[:samples]:
        sample = make_sample(seed)
        features = oracle.features(sample)
        mine, _ = native.generate(features, sample.question, Setting(TOKEN))
        theirs, _ = oracle.generate(features, sample.question, Setting(TOKEN))
        if native.decode(mine.tokens) == oracle.decode(theirs.tokens):
            same += 1
        else:
            differences.append(
                {"seed": seed, "margin": _margin(oracle, features, sample.question, mine, theirs)}
            )
    return {"samples": samples, "equal": same, "share": same / samples, "different": differences}


def _margin(
    answerer: Answerer, features: torch.Tensor, question: str, mine: Generation, theirs: Generation
) -> float:
    """The oracle's smallest margin up to the first token that differs."""
    pairs = zip(mine.tokens, theirs.tokens, strict=False)
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), len(theirs.tokens) - 1)
    visual = answerer.visual(features, TOKEN)
    again = _with_logits(answerer, visual, question)
    assert again.logits is not None
    top = again.logits[:first].topk(2).values
    logit = float((top[:, 0] - top[:, 1]).min()) if first else float("inf")
    cuts = [_cut(step) for step in theirs.steps[:first]]
    gates = [abs(step.similarity - TOKEN.gate_threshold) for step in theirs.steps[1:first]]
    return min([logit, *cuts, *gates])


def _with_logits(answerer: Answerer, visual: torch.Tensor, question: str) -> Generation:
    before, after = answerer.embed_prompt(question)
    return generate(
        answerer.model.model.language_model,
        answerer.model.lm_head,
        torch.cat([before, visual, after]),
        (len(before), len(before) + len(visual)),
        TOKEN,
        max_new_tokens=MAX_NEW_TOKENS,
        end_ids=answerer.end_ids,
        keep_logits=True,
    )


def _cut(step: Step) -> float:
    """Gap between the worst kept and the best dropped score, relative to the former."""
    ranked = step.scores.sort(descending=True).values
    count = tokens_kept(len(ranked), TOKEN.p)
    return float((ranked[count - 1] - ranked[count]) / ranked[count - 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    report = {
        "machine": machine("torch", "transformers"),
        "against_oracle": compare(options.samples),
    }
    text = json.dumps(report, indent=1)
    if options.output:
        options.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
