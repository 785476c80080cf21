"""Whether gates have come to rest on their budgets, and whether they still will in the steps that are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sprunec.masks.budgets import Budget, tolerance

CALM_SHARE, CALM_STEPS = 0.02, 10
FEW_SHARE = 0.05
MOST_NAMED = 3
WINDOW_SHARE, WINDOW_STEPS = 0.1, 25  # where the ramp ends sizes overshoot for a while, and come back


@dataclass
class Convergence:
    """Watches a mask pass step by step; what it remembers goes into the pass's saves.

    Attributes:
        gates: how many there are.
        calm: how many steps in a row have been settled: ramp over, every budget within its tolerance, at most 5% of
            the gates undecided.
        recent: how far the worst budget was out of its tolerance in the last steps after the ramp, as shares of full.
        warning: what was said about a budget that will not settle, and at which step.
    """

    budgets: Sequence[Budget]
    gates: int
    steps: int
    ramp_steps: float
    calm: int = 0
    recent: list[float] = field(default_factory=list)
    warning: str = ""

    @property
    def calm_steps(self) -> int:
        """How long it must stay settled to count as at rest."""
        return max(CALM_STEPS, int(CALM_SHARE * self.steps))

    @property
    def window(self) -> int:
        return max(WINDOW_STEPS, int(WINDOW_SHARE * self.steps))

    def see(self, step: int, expected: Sequence[float], undecided: int) -> dict[str, Any]:
        """Take in one step; returns what its event says of it, `warning` only where it first becomes one."""
        over = [self._over(budget, size) for budget, size in zip(self.budgets, expected, strict=True)]
        ramped = step + 1 >= self.ramp_steps
        at_rest = ramped and max(over) <= 0.0 and undecided <= FEW_SHARE * self.gates
        self.calm = self.calm + 1 if at_rest else 0
        self.recent = [*self.recent, max(over)][-self.window :] if ramped else []
        if self.warning or not self._hopeless(self.steps - step - 1):
            return {"settled_steps": self.calm}
        worst = over.index(max(over))
        self.warning = self._words(self.budgets[worst], expected[worst], step)
        return {"settled_steps": self.calm, "warning": self.warning}

    def at_rest(self, expected: Sequence[float]) -> bool:
        """Settled for long enough, and still so after the last step's update."""
        now = zip(self.budgets, expected, strict=True)
        return self.calm >= self.calm_steps and all(self._over(budget, size) <= 0.0 for budget, size in now)

    def ending(self, step: int, expected: Sequence[float]) -> list[str]:
        """How the pass ended after `step` steps, in words; nothing where it settled and took all of them."""
        if step < self.steps:
            return [f"settled after {step} of {self.steps} steps; the others were left out"]
        rows = zip(self.budgets, expected, strict=True)
        away = [f"{b.name} {size:.4g} of {b.target:.4g}" for b, size in rows if self._over(b, size) > 0.0]
        if not away:
            return []
        more = f" and {len(away) - MOST_NAMED} more" if len(away) > MOST_NAMED else ""
        missed = f"not settled after {step} steps: {', '.join(away[:MOST_NAMED])}{more}"
        return [*filter(None, [self.warning]), missed]

    def state(self) -> dict[str, Any]:
        return {"calm": self.calm, "recent": list(self.recent), "warning": self.warning}

    def load(self, state: Mapping[str, Any]) -> None:
        self.calm, self.recent, self.warning = state["calm"], list(state["recent"]), state["warning"]

    def _over(self, budget: Budget, expected: float) -> float:
        """How far out of its tolerance, as a share of full; at most 0 where it is settled."""
        return (abs(expected - budget.target) - tolerance(budget)) / budget.full

    def _hopeless(self, left: int) -> bool:
        """At the rate of the recent steps, the one half against the other so that noise cancels, it is not reached.

        What has been within its tolerance lately swings around its target, and is not hopeless.
        """
        if len(self.recent) < self.window or min(self.recent) <= 0.0 or not left:
            return False
        half = self.window // 2
        before, after = self.recent[:half], self.recent[-half:]
        rate = (sum(before) - sum(after)) / half / (self.window - half)
        return self.recent[-1] > rate * left

    def _words(self, budget: Budget, expected: float, step: int) -> str:
        where = f"at step {step + 1} of {self.steps} the gates expect {expected:.4g} of {budget.name}"
        trend = f"at the rate of the last {self.window} steps they will not settle on {budget.target:.4g}"
        return f"{where}, and {trend}; give more steps, a higher mask_learning_rate, or a shorter ramp"
