"""The optimizer of the gates: Adam with one second moment for a whole group of parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
SMALLEST = 1e-12


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
