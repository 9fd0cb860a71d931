"""TTM as training sees it: which visual tokens of a video stay.

Training on pruned videos as well teaches the language model that its visual tokens may be few
and that positions, which are consecutive after pruning, tell the order but not the frame.

The rule is core/ttm.py's paper mode without its rounding of cosines: in still background, where
cosines tie after rounding, the survivors are scattered instead of being the lowest indices. The
logged run was made with it, and training is reproduced step by step only with the same tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

_COMPARED_WITH = (None, 1, 2, 1)  # frames back: f1 against f0, f2 against f0, f3 against f2


def ttm(features: Tensor, k: float) -> Tensor:
    """Indices int64 [M], ascending, into the F*N rows of `features` [F, N, D].

    In windows of four frames the first stays whole; each other one keeps the int((1-k)*N) tokens
    least similar (cosine) to the same place in the frame it is compared with.
    """
    frames, tokens = features.shape[:2]
    keep = int((1 - k) * tokens)
    features = features.float()
    unit = features / features.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    parts = []
    for frame in range(frames):
        back = _COMPARED_WITH[frame % 4]
        if back is None:
            chosen = torch.arange(tokens)
        else:
            similarity = (unit[frame] * unit[frame - back]).sum(-1)
            chosen = similarity.argsort(stable=True)[:keep].sort().values
        parts.append(frame * tokens + chosen)
    return torch.cat(parts)
