"""Budgets: how much of what may be kept, how much is expected while gates are soft, and which units fill it exactly.

    name, keys       the units that it counts
    full, unit       the size when everything is kept, and what the smallest unit counts
    target, asked    what gates are held to (what was asked for, or as much of it as there is), and what the plan says
    expected(kept)   the expected size, from the probabilities of being kept
    fill(scores, decided)
                     bool masks that keep the best units up to exactly the target, given the masks decided before
    measure(config)  what a model that was cut has of it

Gates and scores are dicts from (layer, unit) to a tensor (units,).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from sprunec.errors import PassError
from sprunec.families.base_config import ModelConfig, head_groups, parameters_without, removable, unit_sizes
from sprunec.masks.granularity import Multiples, Values, groups, with_followers
from sprunec.masks.size_budget import SizeBudget
from sprunec.plan.targets import NO_MULTIPLES, most_kept
from sprunec.units import COUNTED, INSIDE, Key, Unit

SETTLED_SHARE = 0.02


@dataclass(frozen=True)
class CountBudget:
    """So many units of one kind, over the layers of `keys` together.

    Attributes:
        around: the kinds of gates that these units stand behind; a unit is there only if those are open too.
        each: units for each layer that is still there once the gates around are decided; None: `target` as it is.
        tied: the same units in every layer, the best by the sum of their scores.
        multiple: what is kept of each layer is a multiple of it.
        wanted: what the plan says, where that is above the target; None: the target.
        within: by key, in how many groups its units lie, each of which keeps as many.
    """

    name: str
    keys: tuple[Key, ...]
    full: float
    target: float
    around: tuple[str, ...] = ()
    each: int | None = None
    unit: float = 1.0
    tied: bool = False
    multiple: int = 1
    wanted: float | None = None
    within: Mapping[Key, int] = field(default_factory=dict, hash=False)

    @property
    def asked(self) -> float:
        return self.target if self.wanted is None else self.wanted

    def expected(self, kept: Values) -> Tensor:
        kept = with_followers(kept)
        return torch.stack([kept[key].sum() * self._open(kept, key[0]) for key in self.keys]).sum()

    def fill(self, scores: Values, decided: Values) -> dict[Key, Tensor]:
        alive = [key for key in self.keys if bool(self._open(decided, key[0]))]
        masks = {key: torch.zeros(scores[key].numel(), dtype=torch.bool) for key in self.keys}
        ranked = {key: scores[key] for key in alive}
        if self.tied and alive:
            ranked = {alive[0]: torch.stack([value.detach().cpu().double() for value in ranked.values()]).sum(0)}
        count = round(self.target) if self.each is None else self.each * len(ranked)
        whole = [g for key, v in ranked.items() for g in groups(key, v, self.multiple, within=self.within.get(key, 1))]
        for _, key, units in sorted(whole, key=itemgetter(0), reverse=True):
            open_groups = decided.get((key[0], "kv_group")) if key in self.within else None
            size = scores[key].numel() // self.within.get(key, 1)
            there = [unit for unit in units if open_groups is None or bool(open_groups[unit // size])]
            if len(there) <= count:
                masks[key][there] = True
                count -= len(there)
        return masks | {key: masks[alive[0]] for key in alive if self.tied}

    def measure(self, config: ModelConfig) -> float:
        sizes = unit_sizes(config, {unit for _, unit in self.keys})
        return float(sum(sizes.get(key, 0) for key in self.keys))

    def _open(self, gates: Values, layer: int) -> Tensor:
        """Tell how likely all gates around a layer's units are open."""
        present = [gates[(layer, kind)].double().sum() for kind in self.around if (layer, kind) in gates]
        return torch.stack(present).prod() if present else torch.ones((), dtype=torch.double)


Budget = CountBudget | SizeBudget


def excess(budget: Budget, expected: float) -> float:
    """Tell how far a size is off its target beyond half a unit or 2% of full, whichever is more; as a share of full."""
    return (abs(expected - budget.target) - max(0.5 * budget.unit, SETTLED_SHARE * budget.full)) / budget.full


def settled(budget: Budget, expected: float) -> bool:
    return excess(budget, expected) <= 0.0


def make_budgets(
    config: ModelConfig,
    units: tuple[str, ...],
    target: Mapping[str, Any],
    budget: str,
    tie_heads: bool = False,
    multiple_of: Mapping[str, int] = NO_MULTIPLES,
) -> tuple[Budget, ...]:
    """Make the budgets of a pass on a model of shape `config`.

    Args:
        tie_heads: keep the same heads in all layers.
        multiple_of: by count target, what the numbers of units that a layer keeps are multiples of.

    Raises:
        PassError: heads are to be tied, and layers do not have the same ones; there is nothing left to cut; or cutting
            everything leaves more than the target.
    """
    if tie_heads and len(config.head_sets) > 1:
        raise PassError("tie_heads keeps the same heads in all layers, and they have different ones left")
    multiples = {COUNTED[name].name: count for name, count in multiple_of.items()}
    sizes = unit_sizes(config, units)
    if not sizes:
        raise PassError(f"the model has no {' and no '.join(units)} left that this pass could cut")
    if "parameters" in target:
        wanted, full = float(target["parameters"]), float(config.parameters())
        if parameters_without(config, units) > wanted:
            raise PassError(f"{wanted:,.0f} is below what is left when every unit of this pass is cut")
        return (SizeBudget("all", config, units, True, min(wanted, full), multiples, wanted),)
    if "sparsity" in target:
        left = (1.0 - target["sparsity"]) * float(removable(config, units))
        return (SizeBudget("all", config, units, False, left, multiples),)
    tied = ("head",) if tie_heads else ()
    kinds = sorted(
        (COUNTED[name] for name in target),
        key=lambda unit: (unit.name in INSIDE, unit.name != "kv_group", unit.name in tied),
    )
    within = grouped(config, sizes)
    parts = (_count_budgets(sizes, target, unit, budget, multiples, unit.name in tied) for unit in kinds)
    return tuple(
        replace(each, within={key: within[key] for key in each.keys if key in within})
        for each in chain.from_iterable(parts)
    )


def _count_budgets(
    sizes: Mapping[Key, int], target: Mapping[str, int], unit: Unit, budget: str, multiples: Multiples, tied: bool
) -> Iterator[CountBudget]:
    """Count sublayers and blocks over the model, units inside them by layer or on average over the layers."""
    name, count, multiple = unit.target, target[unit.target], multiples.get(unit.name, 1)
    keys, wanted = tuple(key for key in sizes if key[1] == unit.name), float(count)
    full = float(sum(sizes[key] for key in keys))
    around = ("block", *unit.sublayers)
    if keys and unit.name not in INSIDE:
        around = () if unit.name == "block" else ("block",)
        yield CountBudget(name, keys, full, min(wanted, full), around, wanted=wanted)
    elif keys and (tied or budget == "global"):
        layers = min([len(keys), *(n for key, n in target.items() if COUNTED[key].name in around)])
        most, wanted = sum(most_kept(sizes[key], sizes[key], multiple) for key in keys), float(count * layers)
        size = float(len(keys)) if tied else 1.0
        yield CountBudget(name, keys, full, min(wanted, most), around, count, size, tied, multiple, wanted)
    else:
        for key in keys:
            layer, most = f"{name} layer {key[0]}", most_kept(sizes[key], count, multiple)
            size = float(sizes[key])
            yield CountBudget(layer, (key,), size, float(most), around, multiple=multiple, wanted=wanted)


def allocated(config: ModelConfig, budgets: Iterable[Budget], scores: Values) -> tuple[Budget, ...]:
    """Make a budget for each layer and kind of unit: as many as the given ones would keep of it by the scores."""
    found = []
    for key, mask in fill_all(budgets, scores).items():
        name, full, left = f"{key[1]} layer {key[0]}", float(mask.numel()), float(mask.sum())
        found.append(CountBudget(name, (key,), full, left, within=grouped(config, [key])))
    return tuple(found)


def grouped(config: ModelConfig, keys: Iterable[Key]) -> dict[Key, int]:
    """Tell of which units layers keep as many in each of several groups, and in how many."""
    return {key: head_groups(config, key) for key in keys if head_groups(config, key) > 1}


def fill_all(budgets: Iterable[Budget], scores: Values) -> dict[Key, Tensor]:
    """Make bool masks over all scored units that meet every budget; sublayers come before what is inside them."""
    masks: dict[Key, Tensor] = {}
    for budget in budgets:
        masks |= budget.fill(scores, masks)
    return masks
