"""Cost in FLOPs: the paper's Eq. 8, the true count, and what a compressed video costs.

Two counts, never mixed. Eq. 8 (`paper_*`) counts multiply-accumulates once, two FFN matrices
instead of three, and full-width K and V; it reproduces the paper's tables. The true count
(`true_*`) has two FLOPs per multiply-accumulate, grouped-query widths, the causal half of
attention, and three FFN matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import DyCokeError
from .dims import LlmDims, ModelDims

PAPER_TOKENS_PER_FRAME = 196
PAPER_DECODE_STEPS = 100


@dataclass(frozen=True)
class PaperFlops:
    """Eq. 8, in FLOPs as the paper counts them."""

    prefill: float
    decode: float

    @property
    def total(self) -> float:
        return self.prefill + self.decode


def paper_flops(
    llm: LlmDims, n: float, n_prime: float, steps: int = PAPER_DECODE_STEPS
) -> PaperFlops:
    """Eq. 8: prefill of n visual tokens and R = `steps` decode steps that attend to n' of them.

    T(4nd^2 + 2n^2 d + 2ndm) + T R ((4d^2 + 2dm) + 2(d n' + d(R+1)/2)).
    """
    t, d, m, r = llm.layers, llm.hidden, llm.intermediate, steps
    prefill = t * (4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m)
    decode = t * r * ((4 * d**2 + 2 * d * m) + 2 * (d * n_prime + d * (r + 1) / 2))
    return PaperFlops(prefill, decode)


def paper_video_flops(
    llm: LlmDims,
    frames: int,
    k: float = 0.0,
    p: float = 0.0,
    steps: int = PAPER_DECODE_STEPS,
    tokens_per_frame: int = PAPER_TOKENS_PER_FRAME,
) -> PaperFlops:
    """Eq. 8 of a video: n = N F (1/4 + 3/4 (1-K)), not rounded, and n' = (1-P) n."""
    n = tokens_per_frame * frames * ttm_ratio(k)
    return paper_flops(llm, n, (1 - p) * n, steps)


def ttm_ratio(k: float) -> float:
    """Share of visual tokens that TTM keeps, ignoring rounding: 1/4 + 3/4 (1-K)."""
    return 0.25 + 0.75 * (1 - k)


def retained_ratio(k: float, p: float) -> float:
    """Share of visual tokens attended to in decoding (the paper's): ttm_ratio(K) * (1-P)."""
    return ttm_ratio(k) * (1 - p)


def frames_for_budget(
    llm: LlmDims,
    budget_frames: int,
    k: float,
    p: float,
    steps: int = PAPER_DECODE_STEPS,
    tokens_per_frame: int = PAPER_TOKENS_PER_FRAME,
    multiple: int = 4,
) -> int:
    """Most frames that cost at most what `budget_frames` uncompressed frames cost by Eq. 8.

    multiple: the answer is a multiple of it (4: what TTM's windows and the vision engine take).
    Raises DyCokeError if not even `multiple` frames fit.
    """
    if budget_frames < 1 or multiple < 1:
        raise DyCokeError(
            f"budget_frames={budget_frames}, multiple={multiple} is not allowed; "
            "allowed: integers >= 1"
        )
    budget = paper_video_flops(llm, budget_frames, 0.0, 0.0, steps, tokens_per_frame).total

    def fits(frames: int) -> bool:
        return paper_video_flops(llm, frames, k, p, steps, tokens_per_frame).total <= budget

    frames = 0
    while fits(frames + multiple):
        frames += multiple
    if frames == 0:
        raise DyCokeError(
            f"the budget of {budget_frames} full frames does not allow {multiple} frames "
            f"at k={k}, p={p}"
        )
    return frames


def true_prefill_flops(llm: LlmDims, tokens: int, *, lm_head: bool = False) -> float:
    """FLOPs of a prefill of `tokens` tokens (visual and text); optionally the last one's logits."""
    matrices = 2.0 * tokens * llm.layer_matrix_weights
    attention = 2.0 * tokens * (tokens + 1) * llm.heads * llm.head_dim  # QK^T and PV, causal half
    head = 2.0 * llm.hidden * llm.vocab if lm_head else 0.0
    return llm.layers * (matrices + attention) + head


def true_decode_flops(llm: LlmDims, context: int, pruned_context: int, full_layers: int) -> float:
    """FLOPs of one decode step of one sequence, logits included.

    context: tokens attended to (the fed one included) by the first `full_layers` layers;
    pruned_context: by the others.
    """
    pruned_layers = llm.layers - full_layers
    attended = full_layers * context + pruned_layers * pruned_context
    matrices = 2.0 * (llm.layers * llm.layer_matrix_weights + llm.hidden * llm.vocab)
    return matrices + 4.0 * attended * llm.heads * llm.head_dim


def true_vision_flops(model: ModelDims, frames: int) -> float:
    """FLOPs of tower and projector for `frames` frames (the projector runs before pooling)."""
    v, d = model.vision, model.llm.hidden
    layer = 4 * v.hidden**2 + 2 * v.hidden * v.intermediate
    attention = 4.0 * v.patches * v.hidden
    patch_embedding = 2.0 * 3 * v.patch**2 * v.hidden
    projector = 2.0 * (v.hidden * d + d**2)
    per_patch = v.layers * (2.0 * layer + attention) + patch_embedding + projector
    return frames * v.patches * per_patch
