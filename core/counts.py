"""How much dynamic pruning keeps: integers, computed on the host, for those who only count."""

from __future__ import annotations


def tokens_kept(visual_tokens: int, p: float) -> int:
    """Visual tokens kept at token granularity: int((1-p)*V) in IEEE double (released code)."""
    return int((1 - p) * visual_tokens)


def blocks_kept(prunable_blocks: int, p: float) -> int:
    """Blocks kept of n prunable ones: n - int(p*n + 1e-9).

    The 1e-9 undoes binary rounding: 0.29 * 100 is 28.999..., and p = 0.29 drops 29 of 100 blocks.
    """
    return prunable_blocks - int(p * prunable_blocks + 1e-9)
