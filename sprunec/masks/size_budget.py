"""A budget of parameters: what is expected while gates are soft, and which units of unlike weight fill it."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from operator import itemgetter

import torch
from torch import Tensor

from sprunec.families.base_config import Amount, ModelConfig, layer_sizes, removable, unit_cost, unit_sizes
from sprunec.masks.granularity import Group, Multiples, Values, groups, remainder
from sprunec.units import INSIDE, SUBLAYERS, Key, sublayers_of


@dataclass(frozen=True)
class SizeBudget:
    """So many parameters, over all units of a pass together.

    Attributes:
        config: the model that enters the pass.
        units: what the pass may cut.
        whole: count the whole model, else only what these units can remove.
        multiples: by kind of unit, what the numbers that layers keep are multiples of.
        wanted: what the plan says, where that is above the target; None: the target.
    """

    name: str
    config: ModelConfig
    units: tuple[str, ...]
    whole: bool
    target: float
    multiples: Multiples = field(default_factory=dict, hash=False)
    wanted: float | None = None

    @property
    def asked(self) -> float:
        return self.target if self.wanted is None else self.wanted

    # These are asked for at every training step.

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        return tuple(unit_sizes(self.config, self.units))

    @cached_property
    def full(self) -> float:
        return float(self.config.parameters() if self.whole else removable(self.config, self.units))

    @cached_property
    def unit(self) -> float:
        return float(min(unit_cost(self.config, layer, unit) for layer, unit in self.keys))

    def expected(self, kept: Values) -> Tensor:
        counted = SUBLAYERS if self.whole else self.units
        with_norm = sublayers_of(unit for unit in counted if unit not in INSIDE)
        amounts = {}
        for key, value in kept.items():
            value = value.double()
            some = 1.0 - (1.0 - value).prod() if INSIDE.get(key[1]) in with_norm else 1
            amounts[key] = Amount(value.sum(), some)
        sizes = layer_sizes(self.config, counted, amounts)
        total = torch.stack([torch.as_tensor(size, dtype=torch.double) for size in sizes]).sum()
        return total + (self.config.parameters() - removable(self.config, SUBLAYERS) if self.whole else 0)

    def fill(self, scores: Values, decided: Values) -> dict[Key, Tensor]:
        """Cut from the lowest score up, never below the target; then one more, the one that meets it best.

        Where a large unit would overshoot it is passed over, and smaller ones are cut instead; what still fits then is
        given back. What comes out is at most the target, and less than one smallest unit below it. All of this goes by
        groups of units; those that make no whole group are cut whatever they score.
        """
        parts = (groups(k, v, self.multiples.get(k[1], 1), worst_first=True) for k, v in scores.items())
        order = sorted(chain.from_iterable(parts), key=itemgetter(0))
        # What a unit weighs depends on what else is cut: a dim counts in all heads that its layer has left, a norm goes
        # with the last unit. So no sum of costs will do, and each count is found by bisection over the size of the
        # whole, which falls with every further cut. Say heads weigh 10 and dims 3, the order is head, dim, head, dim,
        # dim, and 17 is to go. First from the low end while the size stays at or above the target: head, dim (13 gone;
        # another head would overshoot). Then kind by kind, the dearest first, what is left of each in order: no head,
        # one dim (16). Then one more, the one that ends nearest below: a dim (19). Last, what is not needed any more,
        # the best first: 2 may come back, and no unit is so small.
        costs = {key: unit_cost(self.config, *key) * self.multiples.get(key[1], 1) for key in scores}
        kinds = [{key for key in scores if costs[key] == cost} for cost in sorted({*costs.values()}, reverse=True)]
        gone: list[Group] = []
        for alike in (set(scores), *kinds):
            taken = set(gone)
            gone = self._more(scores, gone, [each for each in order if each not in taken and each[1] in alike])
        while self._without(scores, gone) > self.target:
            gone.append(self._last(scores, gone, order))
        for alike in kinds:
            gone = self._fewer(scores, gone, alike)
        return self._masks(scores, gone)

    def measure(self, config: ModelConfig) -> float:
        return replace(self, config=config).full

    def _more(self, scores: Values, gone: list[Group], rest: list[Group]) -> list[Group]:
        """Add as many of `rest` to `gone`, in order, as leave no less than the target."""
        return gone + rest[: _most(len(rest), lambda n: self._without(scores, gone + rest[:n]) >= self.target)]

    def _fewer(self, scores: Values, gone: list[Group], alike: set[Key]) -> list[Group]:
        """Take as many of these units out of `gone`, the best first, as still fit."""
        best = sorted((group for group in gone if group[1] in alike), key=itemgetter(0), reverse=True)

        def without(count: int) -> list[Group]:
            back = set(best[:count])
            return [group for group in gone if group not in back]

        return without(_most(len(best), lambda n: self._without(scores, without(n)) <= self.target))

    def _last(self, scores: Values, gone: list[Group], order: list[Group]) -> Group:
        """Find, of the lowest units of each kind and layer, those whose cut comes nearest below the target."""
        taken, first = set(gone), dict[Key, Group]()
        for group in order:
            if group not in taken:
                first.setdefault(group[1], group)
        sizes = {group: self._without(scores, [*gone, group]) for group in first.values()}
        below = [group for group, size in sizes.items() if size <= self.target]
        return max(below, key=sizes.__getitem__) if below else min(sizes, key=sizes.__getitem__)

    def _masks(self, scores: Values, gone: Iterable[Group]) -> dict[Key, Tensor]:
        masks = {key: torch.ones(value.numel(), dtype=torch.bool) for key, value in scores.items()}
        cut = {key: remainder(value, self.multiples.get(key[1], 1)).tolist() for key, value in scores.items()}
        for _, key, units in gone:
            cut[key] += units
        for key, mask in masks.items():
            mask[cut[key]] = False
        return masks

    def _without(self, scores: Values, gone: Iterable[Group]) -> float:
        return float(self.expected(self._masks(scores, gone)))


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """Find the largest count up to `limit` for which `fits` holds; it holds for 0."""
    return bisect(range(1, limit + 1), 0, key=lambda count: not fits(count))
