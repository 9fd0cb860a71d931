import json
from pathlib import Path
from typing import Any

import pytest
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.cost.dims import PRESETS, LlmDims, preset
from dycoke_trt.cost.flops import (
    frames_for_budget,
    paper_video_flops,
    retained_ratio,
    true_decode_flops,
    true_prefill_flops,
    true_vision_flops,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden" / "flops.json").read_text())


def llm(name: str) -> LlmDims:
    return preset(f"llava-ov-{name.lower()}").llm


@pytest.mark.parametrize(
    "row", GOLDEN["table"], ids=lambda r: f"{r['model']}-{r['frames']}-{r['K']}"
)
def test_eq_8(row: dict[str, Any]) -> None:
    got = paper_video_flops(llm(row["model"]), row["frames"], row["K"] or 0.0, row["P"] or 0.0)
    assert got.prefill / 1e12 == pytest.approx(row["prefill_tflops"], rel=1e-9)
    assert got.decode / 1e12 == pytest.approx(row["decode_tflops"], rel=1e-9)
    assert got.total / 1e12 == pytest.approx(row["total_tflops"], rel=1e-9)


def test_presets_have_the_dimensions_of_table_8() -> None:
    for name, dims in GOLDEN["models"].items():
        model = llm(name)
        got = {"d": model.hidden, "m": model.intermediate, "T": model.layers}
        assert got == dims
    assert all(p.vision.tokens_per_frame == 196 for p in PRESETS.values())
    with pytest.raises(DyCokeError, match=r"llava-ov-13b.*llava-ov-0.5b, llava-ov-7b"):
        preset("llava-ov-13b")


def test_retained_ratio_of_the_paper() -> None:
    # Table 1's retained ratios at P = 0.7 for K = 0.3, 0.5, 0.7, and K = 0.7, 0.9 at P = 0.9.
    for k, p, percent in [
        (0.3, 0.7, 23.25), (0.5, 0.7, 18.75), (0.7, 0.7, 14.25), (0.7, 0.9, 4.75), (0.9, 0.9, 3.25)
    ]:  # fmt: skip
        assert retained_ratio(k, p) == pytest.approx(percent / 100)


def test_the_planner() -> None:
    assert frames_for_budget(llm("7B"), 16, 0.7, 0.7) == 32
    assert frames_for_budget(llm("7B"), 16, 0.7, 0.7, multiple=1) == 33
    assert frames_for_budget(llm("7B"), 16, 0.0, 0.0) == 16
    with pytest.raises(DyCokeError, match="does not allow 4 frames"):
        frames_for_budget(llm("7B"), 1, 0.0, 0.0)
    with pytest.raises(DyCokeError, match="budget_frames=0"):
        frames_for_budget(llm("7B"), 0, 0.7, 0.7)


@pytest.mark.parametrize("budget", [8, 16, 24, 57])
def test_the_plan_fits_and_one_more_does_not(budget: int) -> None:
    model = llm("0.5B")
    planned = frames_for_budget(model, budget, 0.5, 0.7, multiple=1)
    limit = paper_video_flops(model, budget).total
    assert paper_video_flops(model, planned, 0.5, 0.7).total <= limit
    assert paper_video_flops(model, planned + 1, 0.5, 0.7).total > limit


def test_known_sizes() -> None:
    # Weights and KV of the published checkpoints in bf16.
    assert llm("7B").weights * 2 == pytest.approx(15.23e9, rel=1e-3)
    assert llm("7B").weights_read_per_step * 2 == pytest.approx(14.14e9, rel=1e-3)
    assert llm("72B").weights * 2 == pytest.approx(145.41e9, rel=1e-3)
    assert llm("0.5B").weights * 2 == pytest.approx(0.988e9, rel=1e-3)
    assert [llm(n).kv_bytes_per_token() for n in ("0.5B", "7B", "72B")] == [12288, 57344, 327680]
    assert PRESETS["llava-ov-7b"].vision_weights == pytest.approx(414.7e6, rel=1e-3)


def test_true_counts_equal_a_count_matrix_by_matrix() -> None:
    model, tokens = llm("7B"), 50
    d, m, width = model.hidden, model.intermediate, model.kv_heads * model.head_dim
    matrices = [(d, d), (d, width), (d, width), (d, d), (d, m), (d, m), (m, d)]
    linear = sum(2 * tokens * rows * columns for rows, columns in matrices)
    attention = sum(4 * context * d for context in range(1, tokens + 1))
    assert true_prefill_flops(model, tokens) == model.layers * (linear + attention)
    head = 2 * d * model.vocab
    assert true_prefill_flops(model, tokens, lm_head=True) == pytest.approx(
        model.layers * (linear + attention) + head
    )
    step = model.layers * (linear / tokens) + head + 4 * d * (3 * 100 + 25 * 40)
    assert true_decode_flops(model, 100, 40, full_layers=3) == pytest.approx(step)


def test_true_counts_of_the_7b_at_32_frames() -> None:
    assert true_prefill_flops(llm("7B"), 6273 + 64) / 1e12 == pytest.approx(90.8, abs=0.05)
    assert true_prefill_flops(llm("7B"), 2961 + 64) / 1e12 == pytest.approx(41.3, abs=0.05)
    assert true_vision_flops(PRESETS["llava-ov-7b"], 32) / 1e12 == pytest.approx(21.3, abs=0.05)
