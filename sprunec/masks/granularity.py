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


def groups(key: Key, scores: Tensor, size: int, *, worst_first: bool = False, within: int = 1) -> list[Group]:
    """Put units of like scores together, the best first; the worst that make no whole group are in none.

    Args:
        worst_first: the other way round; of equals the first in the layer comes first in both.
        within: in how many parts of equal size units lie, side by side, each of which keeps as many: heads in key-value
            groups. Those of one rank in their parts go together.
    """
    values, order = _ranked(scores, within, descending=not worst_first)
    each, count = max(1, size // within), order.size(1)
    left_over = count % each
    whole = order[:, left_over:] if worst_first else order[:, : count - left_over]
    rows = whole.reshape(within, -1, each).transpose(0, 1).reshape(-1, within * each)
    return [(mean, key, tuple(units)) for mean, units in zip(values[rows].mean(1).tolist(), rows.tolist(), strict=True)]


def remainder(scores: Tensor, size: int, within: int = 1) -> Tensor:
    """Give the units that are in no group."""
    _, order = _ranked(scores, within, descending=False)
    return order[:, : order.size(1) % max(1, size // within)].flatten()


def _ranked(scores: Tensor, within: int, descending: bool) -> tuple[Tensor, Tensor]:
    """Give the scores (units,), and units by their rank (within, units / within)."""
    values = scores.detach().cpu().double()
    parts = values.view(within, -1)
    order = torch.sort(parts, dim=1, descending=descending, stable=True).indices
    return values, order + parts.size(1) * torch.arange(within)[:, None]


def with_followers(values: Values) -> Values:
    """Multiply the gates of heads by those of the key-value groups that they are in."""
    changed = {}
    for (layer, unit), groups in values.items():
        heads = values.get((layer, "head"))
        if unit == "kv_group" and heads is not None:
            changed[(layer, "head")] = heads * groups.repeat_interleave(heads.numel() // groups.numel()).to(heads.dtype)
    return {**values, **changed}


def by_kind(scores: Values, change: Callable[[Tensor], Tensor]) -> dict[Key, Tensor]:
    """Change the scores of all units of one kind together, those of all layers in one tensor."""
    found: dict[Key, Tensor] = {}
    for unit in dict.fromkeys(unit for _, unit in scores):
        keys = [key for key in scores if key[1] == unit]
        changed = change(torch.cat([scores[key] for key in keys]))
        found |= dict(zip(keys, changed.split([scores[key].numel() for key in keys]), strict=True))
    return found
