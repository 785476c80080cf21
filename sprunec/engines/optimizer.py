"""The optimizers that a plan may name, and their state in one form whatever the world."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from sprunec.engines.training import Training


def make_optimizer(model: nn.Module, training: Training, others: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), Adam with decay as an L2 term, or SGD with the first beta as its momentum.

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
    """An optimizer's state as if all its parameters, numbered in their order, were in one group."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    return {"state": state["state"], "param_groups": [state["param_groups"][0] | {"params": numbers}]}


def in_groups(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The inverse, for an optimizer of the same parameters."""
    groups = [state["param_groups"][0] | {"params": g["params"]} for g in optimizer.state_dict()["param_groups"]]
    return {"state": state["state"], "param_groups": groups}
