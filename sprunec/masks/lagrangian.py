"""Steer expected sizes to their targets: an augmented Lagrangian with one pair of multipliers per budget.

Wang, Wohlwend & Lei 2020 ("Structured pruning of large language models") with a floor under the quadratic term.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sprunec.masks.budgets import Budget
from sprunec.masks.granularity import Values

# With a floor this high the expected size follows the ramp, and slow multipliers take out what is left: budgets then
# settle within 100 steps; with 10 and 0.1 they overshoot, and need 300.
QUADRATIC_FLOOR = 100.0
MULTIPLIER_RATE = 0.03


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
