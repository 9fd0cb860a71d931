"""What a run of bench/experiments/gpu says about the targets: each next to what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]
SELECT_PATH = "select path (both launches)"
ATTENTION = "attention (K and V)"


def targets(report: Row) -> list[Row]:
    """One row per model and target: model, target, bound, at_least, measured, met, note.

    measured and met are None where the run has no figure; the note says which cell is missing. The
    ratio of TTM + DP to full counts only where full decoding itself is near its floor.
    """
    return [row for model in report["models"] for row in _of_model(model)]


def _of_model(model: Row) -> Iterator[Row]:
    def verdict(
        name: str, bound: float, measured: float | None, note: str = "", *, at_least: bool = False
    ) -> Row:
        met = None
        if measured is not None:
            met = measured >= bound if at_least else measured <= bound
        elif not note:
            note = "not measured"
        return {
            "model": model["model"], "target": name, "bound": bound, "at_least": at_least,
            "measured": measured, "met": met, "note": note,
        }  # fmt: skip

    def kernel(name: str, batch: int, key: str) -> float | None:
        return _first(model["kernels"], key, kernel=name, batch=batch)

    def served(setting: str, batch: int, key: str) -> float | None:
        return _first(model["serving"], key, setting=setting, batch=batch)

    yield verdict("select path at batch 1, us", 12, kernel(SELECT_PATH, 1, "us"))
    yield verdict("select path at batch 64, us", 200, kernel(SELECT_PATH, 64, "us"))
    times_floor = kernel(ATTENTION, 64, "times_floor")
    rate = None if times_floor is None else 1 / times_floor
    yield verdict("attention at batch 64, of the read rate", 0.85, rate, at_least=True)
    near = {}
    for batch in (1, 64):
        ratio = _ratio(
            served("full", batch, "ms_per_token"), served("full", batch, "byte_floor_ms_per_token")
        )
        near[batch] = verdict(f"full decoding at batch {batch}, x byte floor", 1.35, ratio)
        yield near[batch]
    pruned = [
        (row["tokens_per_s"], row["setting"])
        for row in model["serving"]
        if row["setting"].startswith("TTM + DP") and row["batch"] == 64 and "tokens_per_s" in row
    ]
    best, setting = max(pruned, default=(None, ""))
    ratio = _ratio(best, served("full", 64, "tokens_per_s"))
    row = verdict("TTM + DP against full at batch 64, x tokens/s", 1.7, ratio, setting,
                    at_least=True)  # fmt: skip
    if ratio is not None and not near[64]["met"]:
        row |= {"met": False, "note": f"{setting}; does not count: full is not near its floor"}
    yield row
    yield verdict("TTM of 32 frames, ms", 0.1, _first(model["vision"], "ttm_ms"))
    ratio = _ratio(
        served("full", 8, "tokens_per_s"), served("transformers, full", 8, "tokens_per_s")
    )
    yield verdict("full decoding at batch 8, x transformers", 5, ratio, at_least=True)


def target_lines(rows: list[Row]) -> list[str]:
    lines = [f"{'model':14} {'target':46} {'bound':>8} {'measured':>10}  met"]
    for row in rows:
        bound = f"{'>=' if row['at_least'] else '<='} {row['bound']:g}"
        measured = "-" if row["measured"] is None else f"{row['measured']:.3g}"
        met = {True: "yes", False: "NO", None: "-"}[row["met"]]
        note = f"  ({row['note']})" if row["note"] else ""
        lines.append(f"{row['model']:14} {row['target']:46} {bound:>8} {measured:>10}  {met}{note}")
    return lines


def _first(rows: list[Row], key: str, **wanted: Any) -> float | None:
    for row in rows:
        if key in row and all(row.get(name) == value for name, value in wanted.items()):
            return float(row[key])
    return None


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b is not None else None
