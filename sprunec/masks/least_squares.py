"""Least squares over a projection's input features: what removing some costs, and how the others make up for it.

The output of a projection on inputs x (C,) is W x. With the mean H of x xᵀ over calibration batches, the mean square by
which W' x on fewer features differs from it, and the W' that differs least, follow without the data.

Letters in shapes: O outputs, C features, U units, M features of one unit.
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMP = 0.01


def damped(moment: Tensor, share: float) -> Tensor:
    """Add a share of its mean diagonal to H (C, C), in float64, so that few batches do not fit noise."""
    exact = moment.double() if moment.device.type != "mps" else moment.cpu().double()
    mean = exact.diagonal().mean().clamp(min=1e-30)
    return exact + share * mean * torch.eye(len(exact), dtype=exact.dtype, device=exact.device)


def removal_errors(moment: Tensor, weight: Tensor, features: Tensor) -> Tensor:
    """Tell by how much the output's mean square error grows when units go, each time the one that costs least.

    Structured optimal brain surgery (Frantar & Alistarh 2022, Kurtić et al. 2023): the features that are left are
    refitted after every removal.

    Args:
        moment: (C, C).
        weight: (O, C).
        features: (U, M), the features of each unit.

    Returns:
        (U,) on the CPU, rising in the order of removal; the last one left counts as the rest.
    """
    inverse, left = torch.linalg.inv(damped(moment, DAMP)), torch.ones(len(features), dtype=torch.bool)
    weight, features = weight.to(inverse).clone(), features.to(inverse.device)
    errors, last = torch.zeros(len(features), dtype=torch.double), 0.0
    for _ in range(len(features)):
        costs = _costs(inverse, weight, features).cpu().masked_fill(~left, torch.inf)
        unit = int(costs.argmin())
        last = errors[unit] = max(last, float(costs[unit]))
        left[unit] = False
        # Out of W and H⁻¹, where its own entries become those of features that do not matter.
        gone = features[unit]
        solved = torch.linalg.solve(inverse[gone[:, None], gone], inverse[gone])
        weight -= weight[:, gone] @ solved
        inverse -= inverse[:, gone] @ solved
        weight[:, gone], inverse[gone], inverse[:, gone] = 0.0, 0.0, 0.0
        inverse[gone, gone] = 1.0
    return errors.float()


def _costs(inverse: Tensor, weight: Tensor, features: Tensor) -> Tensor:
    """(U,): tr(W_u (H⁻¹_uu)⁻¹ W_uᵀ)."""
    if features.size(1) == 1:
        one = features[:, 0]
        alone: Tensor = weight[:, one].square().sum(0) / inverse.diagonal()[one]
        return alone
    own = inverse[features[:, :, None], features[:, None, :]]
    parts = weight[:, features].movedim(1, 0)  # (U, O, M)
    together: Tensor = (torch.linalg.solve(own, parts.mT) * parts.mT).sum((1, 2))
    return together


def refit(moment: Tensor, weight: Tensor, kept: Tensor, gate: Tensor | None = None, *, ridge: float) -> Tensor:
    """Fit the weight of the kept features that comes nearest to the output of all.

    It minimises the mean of |W x - W' x_K|² + r |W' - W_K|² over inputs x: a ridge regression toward what the weight
    was. One toward zero does worse than no refit.

    Args:
        moment: (C, C).
        weight: (O, C).
        kept: (K,) features.
        gate: (C,), what each feature of the output that is wanted counts; None: 1.
        ridge: r, as a share of the mean of H's diagonal.

    Returns:
        (O, K) in the weight's dtype.
    """
    whole = damped(moment, ridge)
    wanted = weight.to(whole) if gate is None else weight.to(whole) * gate.to(whole)
    kept = kept.to(whole.device)
    fitted: Tensor = torch.linalg.solve(whole[kept[:, None], kept], whole[kept] @ wanted.T).T
    return fitted.to(weight)
