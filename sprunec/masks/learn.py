"""Gates that learn beside the weights: what `train-mask` adds to the training loop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sprunec.engines.loop import Learner
from sprunec.masks.budgets import Budget, settled
from sprunec.masks.gates import GroupAdam, kept_probability, sample, undecided
from sprunec.masks.granularity import by_kind
from sprunec.masks.lagrangian import Convergence, Lagrangian
from sprunec.rewrite.gating import Gates
from sprunec.units import Key

START, SETTLING_SHARE, LAST_RATE = 2.0, 0.3, 0.1
SNAPSHOTS, MOST_SHOWN = 24, 64  # of gates in a pass's events; of one layer's kind
TIED = "head"


def start_from(scores: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """Make log-alphas, mostly open, in the order of the scores: 2 + the standardised log, per kind of unit."""

    def start(values: Tensor) -> Tensor:
        logs = values.double().clamp(min=1e-30).log()
        spread = logs.std(correction=0) if logs.numel() > 1 else logs.new_tensor(0.0)
        return (START + (logs - logs.mean()) / spread.clamp(min=1e-6)).float()

    return by_kind(scores, start)


def tie(scores: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """Sum the scores of the heads (heads,) over the layers, the same in each; leave those of other units."""
    heads = [value for (_, unit), value in scores.items() if unit == TIED]
    return {key: torch.stack(heads).sum(0) if key[1] == TIED else value for key, value in scores.items()}


@torch.no_grad()
def expected_sizes(budgets: Sequence[Budget], log_alphas: Mapping[Key, Tensor]) -> list[float]:
    """Give what is expected of each budget, by how likely each gate is not 0."""
    kept = {key: kept_probability(value) for key, value in log_alphas.items()}
    return [float(budget.expected(kept)) for budget in budgets]


def settling(budgets: Sequence[Budget], log_alphas: Mapping[Key, Tensor]) -> list[dict[str, Any]]:
    """Say where gates stand on budgets: what they expect of each, whether it is settled, how many are undecided."""
    return [
        {"name": budget.name, "target": budget.target, "expected": expected, "full": budget.full}
        | {"distance": abs(expected - budget.target), "settled": settled(budget, expected)}
        | {"undecided": sum(undecided(log_alphas[key].detach()) for key in budget.keys)}
        for budget, expected in zip(budgets, expected_sizes(budgets, log_alphas), strict=True)
    ]


@torch.no_grad()
def kept_shares(log_alphas: Mapping[Key, Tensor]) -> dict[str, Any]:
    """Say how likely each gate is not 0, in percent, by unit and layer: `kept_percent`.

    Of many gates `kept_quantiles`: some from the least to the most likely, evenly spaced in that order.
    """
    found: dict[str, Any] = {"kept_percent": {}, "kept_quantiles": {}}
    for (layer, unit), log_alpha in log_alphas.items():
        kept, name = kept_probability(log_alpha.detach()), "kept_percent"
        if kept.numel() > MOST_SHOWN:
            kept = kept.sort().values[torch.linspace(0, kept.numel() - 1, MOST_SHOWN).round().long()]
            name = "kept_quantiles"
        found[name].setdefault(unit, {})[str(layer)] = (100 * kept).round().int().tolist()
    return {name: units for name, units in found.items() if units}


class GateLearner(Learner):
    """Draws gates before each step, and moves their log-alphas and the multipliers after it.

    One draw serves the whole global batch. Log-alphas live on the CPU: they are few, and their path is then the same
    on every device. The model sees the draw as a leaf, so its gradients add up over however many backward passes a
    step takes; `backward` carries them on to the log-alphas.

    With `tie_heads` all layers share one log-alpha for each head, and one draw of it.
    """

    def __init__(
        self,
        gates: Gates,
        log_alphas: Mapping[Key, Tensor],
        lagrangian: Lagrangian,
        *,
        steps: int,
        rate: float,
        seed: int,
        device: torch.device,
        tie_heads: bool = False,
        stop_when_settled: bool = False,
    ) -> None:
        self.gates, self.lagrangian, self.steps, self.seed, self.device = gates, lagrangian, steps, seed, device
        self.log_alphas = {key: value.clone().requires_grad_() for key, value in log_alphas.items()}
        heads = [key for key in self.log_alphas if tie_heads and key[1] == TIED]
        for key in heads:
            self.log_alphas[key] = self.log_alphas[heads[0]]
        self._own = list({id(value): value for value in self.log_alphas.values()}.values())
        self.rate, self.stops = rate, stop_when_settled
        self.optimizer = GroupAdam([[value] for value in self._own], rate)  # gates of a layer and kind vie
        count = sum(value.numel() for value in self.log_alphas.values())
        self.convergence = Convergence(lagrangian.budgets, count, steps, lagrangian.ramp_steps)
        self._drawn: dict[Key, Tensor] = {}
        self._leaves: dict[Key, Tensor] = {}
        self._step, self._expected = 0, list[float]()

    def before(self, step: int, model_step: int) -> None:
        self._step = step
        noise = torch.Generator().manual_seed(self.seed * 1_000_003 + model_step)
        draws = {id(own): sample(own, torch.rand(own.shape, generator=noise)) for own in self._own}
        for key, log_alpha in self.log_alphas.items():
            self._drawn[key] = draws[id(log_alpha)]
            self._leaves[key] = self._drawn[key].detach().to(self.device).requires_grad_()
            self.gates.set(*key, self._leaves[key])

    def gradients(self) -> list[Tensor]:
        """The loss's at the gates, times the loss scale."""
        return [leaf.grad for leaf in self._leaves.values() if leaf.grad is not None]

    def backward(self, unscale: float) -> None:
        """Send the language-model loss's gradient, times `unscale`, and the penalty's into the log-alphas."""
        seen = {key: leaf.grad.cpu().float() * unscale for key, leaf in self._leaves.items() if leaf.grad is not None}
        if seen:  # all at once, since tied layers share a draw
            torch.autograd.backward([self._drawn[key] for key in seen], list(seen.values()))
        kept = {key: kept_probability(value) for key, value in self.log_alphas.items()}
        penalty, self._expected = self.lagrangian.penalty(kept, self._step)
        penalty.backward()

    def after(self, step: int) -> dict[str, Any]:
        """Move, at the full rate until the last 30% of the steps, over which it goes down to a tenth."""
        left = (self.steps - step) / max(1.0, SETTLING_SHARE * self.steps)
        rate = self.rate * (LAST_RATE + (1.0 - LAST_RATE) * min(1.0, max(0.0, left)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lagrangian.ascend()
        return self._event(step)

    def skip(self, step: int) -> dict[str, Any]:
        self._expected = self.expected()
        return self._event(step)

    def _event(self, step: int) -> dict[str, Any]:
        targets, multipliers = self.lagrangian.targets(step), self.lagrangian.multipliers.tolist()
        rows = zip(self.lagrangian.budgets, self._expected, targets, *multipliers, strict=True)
        budgets = [
            {"name": budget.name, "expected": expected, "target": target, "multiplier1": first, "multiplier2": second}
            | {"distance": abs(expected - budget.target), "settled": settled(budget, expected)}
            for budget, expected, target, first, second in rows
        ]
        undecided, due = self.undecided(), math.ceil(self.steps / SNAPSHOTS)
        event = {"budgets": budgets, "undecided": undecided} | self.convergence.see(step, self._expected, undecided)
        shown = step % due == 0 or step + 1 == self.steps
        return event | (kept_shares(self.log_alphas) if shown else {})

    def done(self) -> bool:
        """Whether the pass may end before its steps do."""
        return self.stops and self.convergence.converged(self.expected())

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "log_alphas": [value.detach() for value in self._own],
            "optimizer": self.optimizer.state_dict(),
            "lagrangian": self.lagrangian.state(),
            "convergence": self.convergence.state(),
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        for value, saved in zip(self._own, state["log_alphas"], strict=True):
            value.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.lagrangian.load(state["lagrangian"])
        self.convergence.load(state.get("convergence", self.convergence.state()))  # older saves have none

    def expected(self) -> list[float]:
        """Give the expected size of each budget as the log-alphas are now."""
        return expected_sizes(self.lagrangian.budgets, self.log_alphas)

    def undecided(self) -> int:
        """Count the gates that have not made up their mind."""
        return sum(undecided(value.detach()) for value in self.log_alphas.values())
