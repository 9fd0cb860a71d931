"""From outcomes to figures: accuracy per task, what pruning did, differences from full tokens."""

from __future__ import annotations

from typing import Any

from ..core.errors import DyCokeError
from ..demo.shapes import SHORT_TASKS, TASKS
from .shapes import Outcome
from .statistics import Estimate, bootstrap, paired_difference, wilson
from .study import Setting

SHORT = "mean of short answers"


def summarise(setting: Setting, outcomes: list[Outcome]) -> dict[str, Any]:
    """The figures of one setting, as JSON.

    `tasks` maps a task to accuracy, its 95 % interval and n; for describe accuracy is the mean
    share of statements that are right. Raises DyCokeError if the configuration asks for dynamic
    pruning and no step was pruned: that would be a result of something else.
    """
    config = setting.config
    steps, pruned = sum(o.steps for o in outcomes), sum(o.pruned for o in outcomes)
    if config.p > 0 and pruned == 0:
        raise DyCokeError(
            f"p={config.p} pruned none of {steps} decode steps, so this is no result for dynamic "
            "pruning; use a larger p, or more samples"
        )
    attended = sum(o.attended for o in outcomes)
    tasks = {}
    for task in TASKS:
        scores = [o.score for o in outcomes if o.task == task]
        if scores:
            short = task in SHORT_TASKS
            estimate = wilson(round(sum(scores)), len(scores)) if short else bootstrap(scores)
            tasks[task] = {**_estimate(estimate), "n": len(scores)}
    return {
        "config": config.to_dict(),
        "tokens_per_block": setting.tokens_per_block,
        "tasks": tasks,
        SHORT: _estimate(bootstrap(_short(outcomes))) if _short(outcomes) else None,
        "visual_tokens": outcomes[0].visual_tokens,
        "steps": steps,
        "steps_pruned": pruned,
        "attended_per_pruned_step": attended / pruned if pruned else None,
        "entered_of_attended": sum(o.entered for o in outcomes) / attended if attended else None,
        "gate_hits": sum(o.gate_hits for o in outcomes),
        "steps_attending_everything": sum(o.full_steps for o in outcomes),
        "attention_mass_kept": sum(o.mass_kept for o in outcomes) / pruned if pruned else None,
    }


def difference(outcomes: list[Outcome], base: list[Outcome]) -> dict[str, Any]:
    """Change of accuracy against another setting on the same samples, with paired intervals."""
    report = {}
    for name, tasks in ((SHORT, SHORT_TASKS), ("describe", ("describe",))):
        pairs = [(a.score, b.score) for a, b in zip(outcomes, base, strict=True) if a.task in tasks]
        if pairs:
            mine, theirs = (list(values) for values in zip(*pairs, strict=True))
            report[name] = _estimate(paired_difference(mine, theirs))
    return report


def _short(outcomes: list[Outcome]) -> list[float]:
    return [o.score for o in outcomes if o.task in SHORT_TASKS]


def _estimate(estimate: Estimate) -> dict[str, float]:
    return {"accuracy": estimate.value, "low": estimate.low, "high": estimate.high}
