"""The optimizers of a model's weights, by a plan's name of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from sprunec.engines.training import Training


def make_optimizer(
    model: nn.Module, training: Training, others: Iterable[nn.Parameter] = (), adam: Any = None
) -> torch.optim.Optimizer:
    """Make AdamW (Loshchilov & Hutter 2019), Adam with decay as an L2 term, or SGD with the first beta as its momentum.

    Torch's Adams are fused: they go over memory once, and not once for each of their ten operations.

    Args:
        others: what is trained beside the model: a group of its own, for it may lie elsewhere.
        adam: an engine's own Adam, if it has one.
    """
    groups = [[p for p in model.parameters() if p.requires_grad], list(others)]
    parameters = [{"params": group} for group in groups if group] or [{"params": []}]  # gates alone may learn
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=training.betas[0], weight_decay=decay)
    kinds = {"adamw": partial(torch.optim.AdamW, fused=True), "adam": adam or partial(torch.optim.Adam, fused=True)}
    made: torch.optim.Optimizer = kinds[training.optimizer](
        parameters, lr=rate, betas=training.betas, weight_decay=decay
    )
    return made
