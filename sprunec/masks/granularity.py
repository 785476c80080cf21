"""Bundles: units of one kind and layer that are kept or cut together, so that what stays is a multiple of their size.

A width that is a multiple of 8 keeps matrix units busy, one of 4 can be made 2:4 sparse.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sprunec.masks.unit_counts import Key
from sprunec.plan.targets import UNITS_OF

Multiples = Mapping[str, int]  # by kind of unit; 1 where it is missing
Bundle = tuple[float, Key, tuple[int, ...]]  # the mean score, and whose units


def by_unit(multiple_of: Mapping[str, int]) -> dict[str, int]:
    """A plan's `multiple_of`, which goes by count targets, by kinds of units."""
    return {UNITS_OF[name][0]: count for name, count in multiple_of.items()}


def bundles(key: Key, scores: Tensor, size: int, *, worst_first: bool = False) -> list[Bundle]:
    """Units of like scores together, the best first; the worst that make no whole bundle are in none.

    Args:
        worst_first: the other way round; of equals the first in the layer comes first in both.
    """
    values = scores.detach().cpu().double()
    order = _ranked(values, not worst_first)
    left_over = len(order) % size
    whole = order[left_over:] if worst_first else order[: len(order) - left_over]
    means = values[whole].view(-1, size).mean(1).tolist()
    return [(mean, key, tuple(row)) for mean, row in zip(means, whole.view(-1, size).tolist(), strict=True)]


def spare(scores: Tensor, size: int) -> Tensor:
    """Which units are in no bundle."""
    return _ranked(scores.detach().cpu().double(), False)[: scores.numel() % size]


def _ranked(values: Tensor, best_first: bool) -> Tensor:
    return torch.sort(values, descending=best_first, stable=True).indices


def round_down(count: float, size: int) -> float:
    """The largest number of whole bundles that is no more, in units; any count where bundles are single units."""
    return count if size == 1 else float(count // size * size)
