"""Steer expected sizes to their targets, by an augmented Lagrangian with one pair of multipliers per budget.

Wang, Wohlwend & Lei 2020 ("Structured pruning of large language models") with a floor under the quadratic term. And
tell whether sizes have converged on their targets, or still will in the steps that are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from sprunec.masks.budgets import Budget, excess
from sprunec.masks.granularity import Values

# With a floor this high the expected size follows the ramp, and slow multipliers take out what is left: budgets then
# settle within 100 steps; with 10 and 0.1 they overshoot, and need 300.
QUADRATIC_FLOOR = 100.0
MULTIPLIER_RATE = 0.03

STEADY_SHARE, STEADY_STEPS = 0.02, 10
UNDECIDED_SHARE = 0.05
MOST_NAMED = 3
WINDOW_SHARE, WINDOW_STEPS = 0.1, 25  # where the ramp ends sizes overshoot for a while, and come back


class Lagrangian:
    """penalty = sum over budgets of lambda1 d + (lambda2 + floor) d², d = (expected - target) / full size."""

    def __init__(self, budgets: Sequence[Budget], steps: int, ramp: float) -> None:
        self.budgets = tuple(budgets)
        self.ramp_steps = ramp * steps
        self.multipliers = torch.zeros(2, len(self.budgets), dtype=torch.double, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.multipliers], lr=MULTIPLIER_RATE, maximize=True)

    def targets(self, step: int) -> list[float]:
        """Give the targets of a step, going from full size to what was asked over the ramp."""
        share = min(1.0, (step + 1) / self.ramp_steps) if self.ramp_steps else 1.0
        return [budget.full + share * (budget.target - budget.full) for budget in self.budgets]

    def penalty(self, kept: Values, step: int) -> tuple[Tensor, list[float]]:
        """Give the penalty of a step, and the expected size of each budget."""
        expected = [budget.expected(kept) for budget in self.budgets]
        sizes = zip(expected, self.targets(step), self.budgets, strict=True)
        distance = torch.stack([(size - target) / budget.full for size, target, budget in sizes])
        first, second = self.multipliers
        penalty = (first * distance + (second + QUADRATIC_FLOOR) * distance.square()).sum()
        return penalty, [float(size.detach()) for size in expected]

    def ascend(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        return {"multipliers": self.multipliers.detach(), "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        self.multipliers.copy_(state["multipliers"])
        self.optimizer.load_state_dict(state["optimizer"])


@dataclass
class Convergence:
    """Watches a mask pass step by step; what it remembers goes into the pass's saves.

    Attributes:
        gates: how many there are.
        steady: how many steps in a row have been settled: ramp over, every budget within its tolerance, at most 5% of
            the gates undecided.
        recent: how far the worst budget was out of its tolerance in the last steps after the ramp, as shares of full.
        warning: what was said about a budget that will not settle, and at which step.
    """

    budgets: Sequence[Budget]
    gates: int
    steps: int
    ramp_steps: float
    steady: int = 0
    recent: list[float] = field(default_factory=list)
    warning: str = ""

    def see(self, step: int, expected: Sequence[float], undecided: int) -> dict[str, Any]:
        """Take in one step; returns what its event says of it, `warning` only where it first becomes one."""
        worst, over = max(enumerate(map(excess, self.budgets, expected)), key=itemgetter(1))
        ramped, window = step + 1 >= self.ramp_steps, max(WINDOW_STEPS, int(WINDOW_SHARE * self.steps))
        settled = ramped and over <= 0.0 and undecided <= UNDECIDED_SHARE * self.gates
        self.steady = self.steady + 1 if settled else 0
        self.recent = [*self.recent, over][-window:] if ramped else []
        event: dict[str, Any] = {"settled_steps": self.steady}
        if self.warning or not self._hopeless(window, self.steps - step - 1):
            return event
        budget, size = self.budgets[worst], expected[worst]
        where = f"at step {step + 1} of {self.steps} the gates expect {size:.4g} of {budget.name}"
        trend = f"at the rate of the last {window} steps they will not settle on {budget.target:.4g}"
        self.warning = f"{where}, and {trend}; give more steps, a higher mask_learning_rate, or a shorter ramp"
        return event | {"warning": self.warning}

    def converged(self, expected: Sequence[float]) -> bool:
        """Tell whether it has been settled for long enough, and still is after the last step's update."""
        long_enough = self.steady >= max(STEADY_STEPS, int(STEADY_SHARE * self.steps))
        return long_enough and max(map(excess, self.budgets, expected)) <= 0.0

    def ending(self, step: int, expected: Sequence[float]) -> list[str]:
        """Say how the pass ended after `step` steps; nothing where it settled and took all of them."""
        if step < self.steps:
            return [f"settled after {step} of {self.steps} steps; the others were left out"]
        rows = zip(self.budgets, expected, strict=True)
        away = [f"{b.name} {size:.4g} of {b.target:.4g}" for b, size in rows if excess(b, size) > 0.0]
        if not away:
            return []
        more = f" and {len(away) - MOST_NAMED} more" if len(away) > MOST_NAMED else ""
        missed = f"not settled after {step} steps: {', '.join(away[:MOST_NAMED])}{more}"
        return [*filter(None, [self.warning]), missed]

    def state(self) -> dict[str, Any]:
        return {"calm": self.steady, "recent": list(self.recent), "warning": self.warning}

    def load(self, state: Mapping[str, Any]) -> None:
        self.steady, self.recent, self.warning = state["calm"], list(state["recent"]), state["warning"]

    def _hopeless(self, window: int, left: int) -> bool:
        """Tell whether the target is out of reach at the rate of the recent steps."""
        # A warning must be sure of its ground: it needs a full window behind the ramp, in which no step was within its
        # tolerance (what was so lately swings around its target, and will settle), and steps that are left. The rate
        # is the mean of the window's older half less that of its newer one, over the distance of their middles, so
        # that noise of single steps cancels; it is negative where the size moves away.
        if len(self.recent) < window or min(self.recent) <= 0.0 or not left:
            return False
        half = window // 2
        rate = (sum(self.recent[:half]) - sum(self.recent[-half:])) / half / (window - half)
        return self.recent[-1] > rate * left
