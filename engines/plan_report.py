"""A build plan as a report: rows for a table, and everything for --json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..cost.floors import Workload, floors, prompt_tables
from .build_plan import TABLE_COPIES, BuildPlan
from .model import Model, dims_of
from .target_gpus import TargetGpu


def plan_rows(plan: BuildPlan) -> list[tuple[str, str]]:
    """(label, value) of each line of the table; GB are 10^9 bytes, of each GPU."""

    def gb(count: float) -> str:
        return f"{count / 1e9:,.2f} GB"

    ranks = f" on each of {plan.tp} GPUs" if plan.tp > 1 else ""
    rows = [
        ("target", f"{plan.target}, sm_{plan.sm}, {gb(plan.memory)}"),
        ("LLM weights", gb(plan.weights_total)),
        ("LLM engine" + ranks, f"{gb(plan.weights_per_rank)}, embedding whole on every rank"),
    ]
    if plan.tp > 1:
        rows.append(("  if the embedding were split", gb(plan.weights_per_rank_split)))
    return [
        *rows,
        ("vision plan", gb(plan.vision_weights)),
        ("activations (estimate)", gb(plan.activations)),
        ("prompt tables", f"{gb(plan.tables)}: {TABLE_COPIES} of {plan.max_batch} sequences"),
        ("reserve (estimate)", gb(plan.reserve)),
        ("KV per token and GPU", f"{plan.kv_bytes_per_token:,} B"),
        (
            "KV pool",
            f"{gb(plan.kv_bytes)}, {plan.kv_blocks:,} blocks of {plan.tokens_per_block} tokens",
        ),
        (
            "plugin state",
            f"{plan.state_bytes / 1e6:,.1f} MB, capacity {plan.state_capacity:,} blocks"
            if plan.state_capacity
            else "none: p = 0",
        ),
        ("plugin interface", plan.plugin_interface if plan.state_capacity else "none: p = 0"),
        (
            "limits",
            f"batch {plan.max_batch} ({plan.profile or 'given'}), input {plan.max_input_len:,}, "
            f"sequence {plan.max_seq_len:,}, {plan.max_num_tokens:,} tokens per step",
        ),
    ]


def floor_rows(
    model: Model, target: TargetGpu, plan: BuildPlan
) -> list[tuple[str, int, float, str]]:
    """(stage, batch, least milliseconds, what binds) for the longest video, alone and with a full
    batch; empty for models and GPUs without published figures."""
    dims = dims_of(model)
    if dims is None or target.gpu is None:
        return []
    rows: list[tuple[str, int, float, str]] = []
    for batch in dict.fromkeys((1, plan.max_batch)):
        workload = Workload(
            frames=model.max_frames,
            batch=batch,
            tokens_per_block=plan.tokens_per_block,
            gpus=plan.tp,
        )
        stages = floors(dims, target.gpu, model.config, workload).stages
        tables = prompt_tables(dims, target.gpu, model.config, workload, slots=plan.max_batch)
        rows += [
            (stage.stage, batch, 1e3 * stage.seconds, stage.bound) for stage in (*stages, tables)
        ]
    return rows


@dataclass(frozen=True)
class Table:
    """columns: none for rows of a label and a value."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class PlanReport:
    """A plan, and the model and GPU that it is of."""

    model: Model
    gpu: TargetGpu
    plan: BuildPlan

    def json(self) -> dict[str, Any]:
        """Every field of the plan in bytes and counts, and the floors."""
        return {
            **asdict(self.plan),
            "kv_tokens": self.plan.kv_tokens,
            "dycoke": self.model.config.to_dict(),
            "floors": [
                {"stage": stage, "batch": batch, "milliseconds": time, "bound": bound}
                for stage, batch, time, bound in floor_rows(self.model, self.gpu, self.plan)
            ],
        }

    def tables(self) -> list[Table]:
        """For people; floors only where there are figures to make them of."""
        plan = self.plan
        videos = [
            (str(v.frames), f"{v.k:g}", f"{v.visual_tokens:,}", f"{v.concurrent:,}")
            for v in plan.videos
        ]
        floors = [
            (stage, str(batch), f"{time:.2f}", bound)
            for stage, batch, time, bound in floor_rows(self.model, self.gpu, plan)
        ]
        tables = [
            Table(f"{plan.model} on {plan.target}", (), plan_rows(plan)),
            Table(
                "videos at once, with their answers",
                ("frames", "K", "visual tokens", "videos"),
                videos,
            ),
            Table(
                f"floors, {self.model.max_frames} frames",
                ("stage", "batch", "least ms", "bound by"),
                floors,
            ),
        ]
        return [table for table in tables if table.rows]
