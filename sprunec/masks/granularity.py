"""Units of one kind, all at once, or in groups that are kept or cut together: what stays is a multiple of their size.

A width that is a multiple of 8 keeps matrix units busy, one of 4 can be made 2:4 sparse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sprunec.units import Key

Values = Mapping[Key, Tensor]  # gates or scores (units,)
Multiples = Mapping[str, int]  # by kind of unit; 1 where it is missing
Group = tuple[float, Key, tuple[int, ...]]  # the mean score, and whose units


def groups(key: Key, scores: Tensor, size: int, *, worst_first: bool = False) -> list[Group]:
    """Put units of like scores together, the best first; the worst that make no whole group are in none.

    Args:
        worst_first: the other way round; of equals the first in the layer comes first in both.
    """
    values = scores.detach().cpu().double()
    order = torch.sort(values, descending=not worst_first, stable=True).indices
    left_over = len(order) % size
    whole = (order[left_over:] if worst_first else order[: len(order) - left_over]).view(-1, size)
    rows = zip(values[whole].mean(1).tolist(), whole.tolist(), strict=True)
    return [(mean, key, tuple(units)) for mean, units in rows]


def remainder(scores: Tensor, size: int) -> Tensor:
    """Give the units that are in no group."""
    return torch.sort(scores.detach().cpu().double(), stable=True).indices[: scores.numel() % size]


def by_kind(scores: Values, change: Callable[[Tensor], Tensor]) -> dict[Key, Tensor]:
    """Change the scores of all units of one kind together, those of all layers in one tensor."""
    found: dict[Key, Tensor] = {}
    for unit in dict.fromkeys(unit for _, unit in scores):
        keys = [key for key in scores if key[1] == unit]
        changed = change(torch.cat([scores[key] for key in keys]))
        found |= dict(zip(keys, changed.split([scores[key].numel() for key in keys]), strict=True))
    return found
