"""Budgets: how much of what may be kept, how much is expected while gates are soft, and which units fill it exactly.

Gates and scores are dicts from (layer, unit) to a tensor (units,).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sprunec.masks.sizes import SizeBudget
from sprunec.masks.units import Key, Values, unit_sizes
from sprunec.model.config import ModelConfig

COUNTS = {
    "num_layers": "block",
    "num_attention": "attention",
    "num_feed_forward": "feed_forward",
    "num_heads": "head",
    "dim_head": "dim_head",
    "dim_ff": "dim_ff",
}
SETTLED_SHARE = 0.02


class Budget(Protocol):
    """One constraint on what is kept."""

    @property
    def name(self) -> str: ...

    @property
    def keys(self) -> tuple[Key, ...]:
        """The units it counts."""

    @property
    def full(self) -> float:
        """The size when everything is kept."""

    @property
    def target(self) -> float: ...

    @property
    def unit(self) -> float:
        """What the smallest unit counts."""

    def expected(self, kept: Values) -> Tensor:
        """The expected size, from the probabilities of being kept."""

    def fill(self, scores: Values) -> dict[Key, Tensor]:
        """Bool masks that keep the best units up to exactly the target."""


def settled(budget: Budget, expected: float) -> bool:
    """Within half a unit or 2% of the budget's size of its target, whichever is more."""
    return abs(expected - budget.target) <= max(0.5 * budget.unit, SETTLED_SHARE * budget.full)


@dataclass(frozen=True)
class CountBudget:
    """So many units of one kind, over the layers of `keys` together."""

    name: str
    keys: tuple[Key, ...]
    full: float
    target: float
    unit: float = 1.0

    def expected(self, kept: Values) -> Tensor:
        return torch.cat([kept[key] for key in self.keys]).sum()

    def fill(self, scores: Values) -> dict[Key, Tensor]:
        flat = torch.cat([scores[key].detach().cpu() for key in self.keys])
        mask = torch.zeros(flat.numel(), dtype=torch.bool)
        mask[torch.sort(flat, descending=True, stable=True).indices[: round(self.target)]] = True
        parts = mask.split([scores[key].numel() for key in self.keys])
        return dict(zip(self.keys, parts, strict=True))


def make_budgets(
    config: ModelConfig, units: tuple[str, ...], target: Mapping[str, Any], budget: str
) -> tuple[Budget, ...]:
    """The budgets of a pass on a model of shape `config`."""
    if "parameters" in target:
        return (SizeBudget("all", config, units, whole=True, target=float(target["parameters"])),)
    if "sparsity" in target:
        part = SizeBudget("all", config, units, whole=False, target=0.0)
        return (replace(part, target=(1.0 - target["sparsity"]) * part.full),)
    sizes = unit_sizes(config, units)
    return tuple(b for name, count in target.items() for b in _count_budgets(sizes, name, count, budget))


def _count_budgets(sizes: Mapping[Key, int], name: str, count: int, budget: str) -> list[CountBudget]:
    """Sublayers and blocks are counted over the model; units inside them by layer, or on average over the layers."""
    unit = COUNTS[name]
    keys = [key for key in sizes if key[1] == unit]
    if unit in ("block", "attention", "feed_forward"):
        return [CountBudget(name, tuple(keys), float(len(keys)), float(min(count, len(keys))))]
    if budget == "global":
        full = sum(sizes[key] for key in keys)
        return [CountBudget(name, tuple(keys), float(full), float(min(count * len(keys), full)))]
    return [
        CountBudget(f"{name} layer {key[0]}", (key,), float(sizes[key]), float(min(count, sizes[key]))) for key in keys
    ]


def fill_all(budgets: Iterable[Budget], scores: Values) -> dict[Key, Tensor]:
    """Bool masks over all scored units that meet every budget."""
    return {key: mask for budget in budgets for key, mask in budget.fill(scores).items()}
