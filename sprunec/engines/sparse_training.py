"""Weights that a 2:4 pattern has set to zero, held there while the others train."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sprunec.engines.sharding import like, local


class PrunedWeights:
    """A model's pruned weights, which stay at exactly zero whatever the optimizer does.

    Args:
        kept: bool masks by parameter name, True where the weight trains.
    """

    def __init__(self, model: nn.Module, kept: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        masks = {name: like(mask.to(parameters[name].device), parameters[name]) for name, mask in kept.items()}
        self._pruned = [(parameters[name], ~local(mask)) for name, mask in masks.items()]

    @torch.no_grad()
    def zero_gradients(self) -> None:
        """Before clipping: what will not move counts in no norm and in no moment. Filled, since 0 x infinity is NaN."""
        for parameter, pruned in self._pruned:
            if parameter.grad is not None:
                local(parameter.grad).masked_fill_(pruned, 0.0)

    @torch.no_grad()
    def zero(self) -> None:
        """After the step, which decay and momentum may have moved them in."""
        for parameter, pruned in self._pruned:
            local(parameter).masked_fill_(pruned, 0.0)
