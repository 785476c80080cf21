"""Warn of cuts that nothing makes good; how much may go without training follows docs/quality.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sprunec.families.base_config import removable
from sprunec.plan.targets import Left
from sprunec.plan.written_plan import Step, WrittenPlan
from sprunec.units import SUBLAYERS

# Shares of what can be cut of a model, up to which its loss stays near the dense one's without training.
LEARNED, REFITTED, SCORED, BLIND = 0.5, 0.3, 0.2, 0.05
UNSEEING = ("random", "magnitude")  # criteria that look at no data
RECOVERY = 'add {"pass": "finetune", "steps": 500, "distillation": {"logits": 1.0}} after it'
REFIT = ', or at least "compensate": "least-squares" to it'


@dataclass
class _Lost:
    """What has gone since the last training: as a share, by which step, and how much may."""

    share: float = 0.0
    step: Step | None = None
    most: float = LEARNED


def recovery_follows(plan: WrittenPlan) -> None:
    """Warn where more goes than refits make good, and nothing is trained behind it."""
    if plan.config is None:
        return
    left, lost = Left.of(plan.config), _Lost()
    total = max(1, removable(plan.config, SUBLAYERS))
    for step in plan.steps:
        if step.declared.trains:
            lost = _Lost()
        if step.declared.removes != "units" or not step.is_valid:
            continue
        if (target := _target(step)) is None:
            return  # how much goes is not known before
        before, left = left, left.planned(step.units, target, step.options.get("multiple_of") or {})
        lost = _Lost(lost.share + (before.parameters - left.parameters) / total, step, min(lost.most, _most(step)))
    if lost.step is not None and lost.share > lost.most:
        message = f"{lost.share:.0%} of what can be cut goes, and nothing is trained after it: the model may collapse"
        refit = REFIT if lost.step.options.get("compensate", "") is None else ""
        lost.step.warn("no-recovery", "target", message, RECOVERY + refit)


def _target(step: Step) -> dict[str, Any] | None:
    """Give the target as a mask pass has it; None where it says no size."""
    target: Any = step.options.get("target")
    if isinstance(target, tuple):  # of a search
        chosen = target[min(step.options["chosen"], len(target)) - 1]
        return {"parameters": chosen["parameters"]} if "parameters" in chosen else None
    return dict(target) if target else None


def _most(step: Step) -> float:
    if step.declared.trains:
        return LEARNED
    if step.options.get("compensate") is not None:
        return REFITTED
    return BLIND if step.options.get("criterion") in UNSEEING else SCORED
