"""The optimizers that a plan may name, their state in one form whatever the world, and fp16's loss scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from sprunec.engines.training import Training

GROWTH, BACKOFF, INTERVAL = 2.0, 0.5, 2000  # of the loss scale


def make_optimizer(model: nn.Module, training: Training, others: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
    """Make AdamW (Loshchilov & Hutter 2019), Adam with decay as an L2 term, or SGD with the first beta as its momentum.

    Args:
        others: what is trained beside the model: a group of its own, for it may lie elsewhere.
    """
    groups = [[p for p in model.parameters() if p.requires_grad], list(others)]
    parameters = [{"params": group} for group in groups if group]
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=training.betas[0], weight_decay=decay)
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, betas=training.betas, weight_decay=decay)


def one_group(state: Mapping[str, Any]) -> dict[str, Any]:
    """Lay an optimizer's state out as if all its parameters, numbered in their order, were in one group."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    return {"state": state["state"], "param_groups": [state["param_groups"][0] | {"params": numbers}]}


def in_groups(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Do the inverse, for an optimizer of the same parameters."""
    groups = [state["param_groups"][0] | {"params": g["params"]} for g in optimizer.state_dict()["param_groups"]]
    return {"state": state["state"], "param_groups": groups}


class LossScale:
    """fp16's dynamic loss scale (Micikevicius et al. 2018): doubles after INTERVAL good steps, halves after a bad one.

    Which step is bad, all ranks say together; `torch.amp.GradScaler` decides for itself, and takes no mix of sharded
    and whole gradients.
    """

    def __init__(self, first: float, *, enabled: bool) -> None:
        self.enabled, self.value, self._good = enabled, first if enabled else 1.0, 0

    def update(self, finite: bool) -> None:
        if not self.enabled:
            return
        self._good = self._good + 1 if finite else 0
        if not finite:
            self.value *= BACKOFF
        elif self._good == INTERVAL:
            self.value, self._good = self.value * GROWTH, 0

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.value, "_growth_tracker": self._good} if self.enabled else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.enabled:
            self.value, self._good = state["scale"], state["_growth_tracker"]
