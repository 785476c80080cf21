"""Warn of gates that cannot get to their target in the steps that they have.

A gate starts at a log-alpha of about 2, spread by 1, and is closed at about -4. Adam moves it by its rate a step at
most, over the last 30% of the steps by less. What is needed was tried on budgets of 64 and 1,024 gates: with a path of
5.2 none of them settled, with 8.7 about half.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from sprunec.families.base_config import removable
from sprunec.plan.targets import Left
from sprunec.plan.written_plan import Step, WrittenPlan

START, CLOSED = 2.0, -4.0
AT_FULL_RATE = 0.7 + 0.3 * 0.55  # of the steps, since the rate goes down to a tenth over the last of them
LEAST_LEFT = 3  # steps at the target, behind the ramp
MOST_SHARE = 0.99


def gates_arrive(plan: WrittenPlan) -> None:
    """Compare how far the gates of each pass can move with how far those have to that close."""
    if plan.config is None:
        return
    left = Left.of(plan.config)
    for step in plan.valid_steps:
        if step.declared.removes != "units" or "target" not in step.options or "steps" not in step.options:
            continue
        options = step.options
        target = dict(options.get("gates_for") or options["target"])
        share = _share(step, left, target)
        path = AT_FULL_RATE * options["mask_learning_rate"] * options["steps"]
        needed = START - CLOSED + NormalDist().inv_cdf(share) if share > 0 else 0.0
        behind = (1.0 - options["ramp"]) * options["steps"]
        if path < needed:
            message = f"{options['steps']} steps at {options['mask_learning_rate']:g} move gates by {path:.1f} at most"
            hint = f"give {_steps(needed, options)} steps or more, or a higher mask_learning_rate"
            step.warn("gates-too-slow", "steps", f"{message}, and those that close need {needed:.1f}", hint)
        elif behind < LEAST_LEFT:
            message = f"the ramp leaves {behind:g} steps at the target, too few to settle on it"
            step.warn("gates-too-slow", "ramp", message, "give more steps, or a shorter ramp such as 0.5")
        left = left.planned(options["unit"], options["target"], options.get("multiple_of") or {})


def _share(step: Step, left: Left, target: Mapping[str, Any]) -> float:
    """Tell which share of the pass's gates has to close, about: as many as of the parameters that they stand for."""
    gone = left.parameters - left.planned(step.options["unit"], target).parameters
    return min(MOST_SHARE, gone / max(1, removable(left.config, step.options["unit"])))


def _steps(needed: float, options: Mapping[str, Any]) -> int:
    return int(needed / (AT_FULL_RATE * options["mask_learning_rate"])) + 1
