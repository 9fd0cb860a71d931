from pathlib import Path

import numpy as np
import pytest
import torch
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.core.ttm import (
    SIMILARITY_GRID,
    similarity,
    tokens_kept_per_frame,
    ttm_count,
    ttm_merge,
    ttm_select,
)
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
MODES = ["paper", "reference", "random", "off"]


def cases(pattern: str) -> list[str]:
    # A partial frame cannot be written as [F, N, D]; that file documents the released code only.
    names = [p.name for p in sorted(GOLDEN.glob(pattern)) if "edgeF8plus5rows" not in p.name]
    assert names
    return names


@pytest.mark.parametrize("name", cases("ttm_*.npz") + cases("paper_ttm_*.npz"))
def test_golden(name: str) -> None:
    data = np.load(GOLDEN / name, allow_pickle=False)
    features = torch.from_numpy(data["features"])
    frames, tokens = int(data["num_frames"]), int(data["num_tokens_per_frame"])
    features = features.view(frames, tokens, -1)
    k = float(data["K"])
    mode = "paper" if name.startswith("paper") else "reference"
    assert tokens_kept_per_frame(tokens, k) == data["num_keep"]
    if mode == "reference" and str(data["official_error"]):
        with pytest.raises(DyCokeError, match="at least 5"):
            ttm_select(features, k, "reference")
        assert len(ttm_select(features, k, "paper")) == ttm_count(frames, tokens, k)
        return
    rows = ttm_select(features, k, mode)
    assert rows.dtype == torch.int64
    np.testing.assert_array_equal(rows.numpy(), data["row_index"])
    np.testing.assert_array_equal(ttm_merge(features, k, mode).numpy(), data["output"])
    assert ttm_count(frames, tokens, k, mode) == len(data["row_index"])


def slow_select(features: torch.Tensor, k: float, mode: str) -> list[int]:
    """Window by window, pair by pair, sorted by (similarity, index) in plain Python."""
    frames, tokens = features.shape[:2]
    n_keep = int((1 - k) * tokens)

    def least_similar(frame: int, to: int) -> list[int]:
        cosines = similarity(features[frame], features[to]).tolist()
        ranked = sorted(range(tokens), key=lambda t: (cosines[t], t))[:n_keep]
        return [frame * tokens + t for t in (ranked if mode == "reference" else sorted(ranked))]

    def whole(frame: int) -> list[int]:
        return [frame * tokens + t for t in range(tokens)]

    rows: dict[int, list[int]] = {}
    if mode == "paper":
        for start in range(0, frames, 4):
            rows[start] = whole(start)
            for offset, against in ((1, 0), (2, 0), (3, 2)):
                if start + offset < frames:
                    rows[start + offset] = least_similar(start + offset, start + against)
    else:  # the released code's two passes
        for even in range(0, frames - 1, 2):
            rows[even] = whole(even)
            rows[even + 1] = least_similar(even + 1, even)
        for start in range(0, frames - 4, 4):
            rows[start + 2] = least_similar(start + 2, start)
    return [row for frame in sorted(rows) for row in rows[frame]]


@given(
    frames=st.integers(1, 20),
    tokens=st.integers(1, 12),
    dim=st.integers(1, 6),
    k=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99]),
    mode=st.sampled_from(["paper", "reference"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    levels=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_equals_the_slow_form(
    frames: int, tokens: int, dim: int, k: float, mode: str, dtype: torch.dtype, levels: int,
    seed: int,
) -> None:  # fmt: skip
    # Few integer levels make duplicates, zero vectors and ties common.
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-levels, levels + 1, (frames, tokens, dim), generator=generator)
    features = values.to(dtype)
    if mode == "reference" and frames <= 4:
        with pytest.raises(DyCokeError):
            ttm_select(features, k, mode)
        return
    assert ttm_select(features, k, mode).tolist() == slow_select(features, k, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("tokens", "k"), [(1, 0.7), (20, 0.9), (7, 0.0), (16, 0.5)])
def test_count_equals_selection(mode: str, tokens: int, k: float) -> None:
    for frames in range(1, 34):
        features = torch.randn(frames, tokens, 5)
        try:
            count = ttm_count(frames, tokens, k, mode)
        except DyCokeError:
            assert mode == "reference"
            assert frames <= 4
            with pytest.raises(DyCokeError):
                ttm_select(features, k, mode)
            continue
        rows = ttm_select(features, k, mode)
        assert len(rows) == count
        assert len(rows.unique()) == count


def test_count_of_the_paper_setting() -> None:
    assert ttm_count(32, 196, 0.7) == 2960
    for frames, tokens, k in [(32, 196, 0.7), (7, 10, 0.5), (1, 3, 0.9), (6, 9, 0.3)]:
        n_keep, r = int((1 - k) * tokens), frames % 4
        formula = frames // 4 * (tokens + 3 * n_keep) + (tokens + (r - 1) * n_keep if r else 0)
        assert ttm_count(frames, tokens, k) == formula


@pytest.mark.parametrize("kind", ["duplicate frames", "constant", "zero"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["paper", "reference"])
def test_ties_keep_the_lowest_indices(kind: str, dtype: torch.dtype, mode: str) -> None:
    frames, tokens, k = 8, 10, 0.7
    features = {
        "duplicate frames": torch.randn(1, tokens, 24).expand(frames, -1, -1),
        "constant": torch.full((frames, tokens, 24), 0.37),
        "zero": torch.zeros(frames, tokens, 24),
    }[kind].to(dtype)
    rows = ttm_select(features, k, mode)
    kept = {f: [r - f * tokens for r in rows.tolist() if r // tokens == f] for f in range(frames)}
    whole = {0, 4} if mode == "paper" else {0, 4, 6}
    for frame, columns in kept.items():
        assert columns == list(range(tokens if frame in whole else 3))


@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
def test_similarity_is_a_cosine_on_the_grid(seed: int, scale: float) -> None:
    a, b = torch.randn(2, 50, 24, generator=torch.Generator().manual_seed(seed)) * scale
    got = similarity(a, b)
    exact = torch.cosine_similarity(a.double(), b.double(), dim=-1)
    assert (got - exact).abs().max() <= SIMILARITY_GRID
    steps = got / SIMILARITY_GRID
    assert torch.equal(steps, steps.round())


def test_random_is_seeded_and_has_the_budget_of_paper_in_every_frame() -> None:
    features = torch.randn(9, 20, 8)
    paper, first = ttm_select(features, 0.7), ttm_select(features, 0.7, "random", seed=1)
    assert torch.equal(first // 20, paper // 20)
    assert torch.equal(first, ttm_select(features, 0.7, "random", seed=1))
    assert not torch.equal(first, ttm_select(features, 0.7, "random", seed=2))
    assert (first.diff() > 0).all()


def test_off_and_k_zero_keep_everything() -> None:
    features = torch.randn(6, 5, 3)
    for mode, k in (("off", 0.9), ("paper", 0.0), ("random", 0.0)):
        assert torch.equal(ttm_select(features, k, mode), torch.arange(30))


@pytest.mark.parametrize("shape", [(4, 5), (0, 5, 3), (4, 0, 3), (1, 4, 5, 3)])
def test_wrong_shapes_are_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[F, N, D\]"):
        ttm_select(torch.zeros(shape), 0.5)


def test_wrong_arguments_are_errors() -> None:
    features = torch.zeros(5, 2, 2)
    for k in (-0.1, 1.0, float("nan")):
        with pytest.raises(DyCokeError, match="0 <= k < 1"):
            ttm_select(features, k)
    with pytest.raises(DyCokeError, match="ttm='Paper'"):
        ttm_select(features, 0.5, "Paper")
    with pytest.raises(DyCokeError, match="frames=0"):
        ttm_count(0, 196, 0.7)


def test_nothing_is_read_back_to_the_host() -> None:
    # Reading the value of a meta tensor raises, so this passes only without host synchronisation.
    with pytest.raises(RuntimeError):
        torch.zeros(1, device="meta").item()
    rows = ttm_select(torch.zeros(9, 4, 3, device="meta"), 0.5)
    assert rows.shape == (ttm_count(9, 4, 0.5),)
