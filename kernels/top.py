"""The best of a sequence's scores, without sorting them: the key of the last one that is wanted.

A key is the bits of an fp32 score that is not negative: read as integers they order as the scores
do. The wanted-th greatest key is built from the highest bit down, a bit staying set if enough keys
reach what is built so far: 32 counts of n keys in place of n^2 comparisons, and exact. Keys that
equal the last one are taken in order of position until there are enough.
"""

from __future__ import annotations

import triton
import triton.language as tl

NO_KEY = tl.constexpr(-1)  # of what takes no part, below every key
# What is not a number ranks first, as in torch's descending sort: as if it were infinite.
INFINITE = tl.constexpr(0x7F800000)


@triton.jit
def score_key(score, candidate):
    """Keys of scores, NO_KEY where not `candidate`. A negative zero is a zero."""
    key = tl.where(score > 0, score.to(tl.int32, bitcast=True), 0)
    key = tl.where(score == score, key, INFINITE)
    return tl.where(candidate, key, NO_KEY)


@triton.jit
def count_above(keys, floor, begin, end, TILE: tl.constexpr):
    """How many of the keys begin <= t < end are greater than `floor` (>= 0)."""
    count = tl.zeros([TILE], tl.int32)
    for first in range(begin, end, TILE):
        t = first + tl.arange(0, TILE)
        key = tl.load(keys + t, mask=t < end, other=NO_KEY)
        count += (key > floor).to(tl.int32)
    return tl.sum(count, 0)


@triton.jit
def last_wanted(keys, wanted, begin, end, TILE: tl.constexpr):
    """(the wanted-th greatest of the keys begin <= t < end, how many of those that equal it are
    wanted). `wanted` is no more than there are; for 0 the key is above all.

    All threads read all keys: what wrote them ends with a barrier.
    """
    last = 0
    bit = 1 << 30  # the highest of a key
    while bit > 0:
        trial = last | bit
        reached = count_above(keys, trial - 1, begin, end, TILE) >= wanted
        last = tl.where(reached, trial, last)
        bit = bit >> 1
    return last, wanted - count_above(keys, last, begin, end, TILE)


@triton.jit
def take(key, last, ties, tied):
    """(which of a tile of keys are taken, how many so far equalled the last one).

    last, ties: of `last_wanted`; tied: how many did in the tiles before.
    """
    tie = (key == last).to(tl.int32)
    taken = (key > last) | ((tie > 0) & (tied + tl.cumsum(tie, 0) <= ties))
    return taken, tied + tl.sum(tie, 0)
