"""The hard concrete distribution (Louizos, Welling & Kingma 2018): gates in [0, 1] that learn through their noise.

Their optimizer is Adam with one second moment for a whole group of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
SHIFT = BETA * math.log(-GAMMA / ZETA)
UNDECIDED = (0.1, 0.9)
BETAS, SMALLEST = (0.9, 0.999), 1e-12


def sample(log_alpha: Tensor, noise: Tensor) -> Tensor:
    """Draw the gates once; `noise` is uniform in (0, 1), both are (units,). Equations 10 and 11."""
    soft = torch.sigmoid((torch.logit(noise, eps=1e-6) + log_alpha) / BETA)
    return (soft * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def kept_probability(log_alpha: Tensor) -> Tensor:
    """Tell how likely a gate is not 0. Equation 12."""
    return torch.sigmoid(log_alpha - SHIFT)


def expected_gate(log_alpha: Tensor) -> Tensor:
    """Give a gate without noise. Equation 13."""
    return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def undecided(log_alpha: Tensor) -> int:
    """Count the gates that are neither nearly always nor nearly never kept."""
    probability = kept_probability(log_alpha)
    return int(((probability > UNDECIDED[0]) & (probability < UNDECIDED[1])).sum())


class GroupAdam(torch.optim.Optimizer):
    """Adam that divides by the root mean square gradient of a whole group, as Adam-mini (Zhang et al. 2024) does.

    Adam itself moves every entry by about its rate, whatever its gradient. Gates are to be told apart, and how much
    the loss feels a gate is what tells them apart: within a group their gradients keep their sizes.

    Args:
        groups: the parameters of each group.
    """

    def __init__(self, groups: Iterable[list[Tensor]], rate: float) -> None:
        super().__init__([{"params": group, "step": 0, "mean_square": 0.0} for group in groups], {"lr": rate})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every group that has gradients."""
        first, second = BETAS
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            square = float(torch.cat([p.grad.double().flatten() for p in parameters]).square().mean())
            group["step"] += 1
            group["mean_square"] = second * group["mean_square"] + (1 - second) * square
            size = math.sqrt(group["mean_square"] / (1 - second ** group["step"]))
            rate = group["lr"] / (1 - first ** group["step"]) / (size + SMALLEST)
            for parameter in parameters:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - first)
                parameter.sub_(rate * momentum)
