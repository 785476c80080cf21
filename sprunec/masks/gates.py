"""The hard concrete distribution (Louizos, Welling & Kingma 2018): gates in [0, 1] that learn through their noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
SHIFT = BETA * math.log(-GAMMA / ZETA)
UNDECIDED = (0.1, 0.9)


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
