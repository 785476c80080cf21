"""Units removed one at a time, as it is told in papers: the whole inverse and the whole weight after every one."""

from __future__ import annotations

import torch
from torch import Tensor


def remove_one_by_one(moment: Tensor, weight: Tensor, features: Tensor, damp: float) -> tuple[list[int], Tensor]:
    """Remove units in float64 -> the order, and what each one costs (U,), in that order.

    Args:
        moment: (C, C).
        weight: (O, C).
        features: (U, M).
        damp: a share of the moment's mean diagonal, which is added to it.
    """
    exact, weight = moment.double(), weight.double().clone()
    inverse = torch.linalg.inv(exact + damp * exact.diagonal().mean() * torch.eye(len(exact), dtype=torch.double))
    left, order, costs = set(range(len(features))), list[int](), list[float]()
    while left:
        own = inverse[features[:, :, None], features[:, None, :]]
        if features.size(1) == 1:
            each = weight[:, features[:, 0]].square().sum(0) / own.flatten()  # so many solutions of 1 x 1 take long
        else:
            parts = weight[:, features].movedim(1, 0)  # (U, O, M)
            each = (torch.linalg.solve(own, parts.mT) * parts.mT).sum((1, 2))
        unit = min(left, key=each.tolist().__getitem__)
        left.remove(unit)
        order.append(unit)
        costs.append(float(each[unit]))
        gone = features[unit]
        change = torch.linalg.solve(inverse[gone[:, None], gone], inverse[gone])
        weight -= weight[:, gone] @ change
        inverse -= inverse[:, gone] @ change
        weight[:, gone], inverse[gone], inverse[:, gone] = 0.0, 0.0, 0.0
        inverse[gone, gone] = 1.0
    return order, torch.tensor(costs, dtype=torch.double)


def refit_at_once(moment: Tensor, weight: Tensor, kept: Tensor, *, ridge: float) -> Tensor:
    """Fit the weight (O, K) of features kept (K,) in float64, the moment's damped mean diagonal drawing to the old."""
    exact = moment.double()
    damped = exact + ridge * exact.diagonal().mean() * torch.eye(len(moment), dtype=torch.double)
    fitted: Tensor = torch.linalg.solve(damped[kept][:, kept], damped[kept] @ weight.double().T).T
    return fitted


def refitted_error(moment: Tensor, weight: Tensor, kept: Tensor, ridge: float) -> float:
    """Tell the mean square error of the outputs on features kept (K,), refitted: tr((W - W') H (W - W')ᵀ)."""
    apart = weight.double().index_add(1, kept, refit_at_once(moment, weight, kept, ridge=ridge), alpha=-1)
    return float(((apart @ moment.double()) * apart).sum())
