"""A budget of parameters: what is expected while gates are soft, and which units of unlike weight fill it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sprunec.errors import PassError
from sprunec.families.cpm_ant.config import LayerShape, ModelConfig
from sprunec.masks.granularity import Bundle, Multiples, bundles, spare
from sprunec.masks.unit_counts import Key, Values, unit_cost, unit_keys

SIZES = ("parameters", "sparsity")  # the targets that are one


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

    def within_reach(self) -> SizeBudget:
        """Held to the size of all that is there, where more is asked for.

        Raises:
            PassError: not even cutting everything is enough.
        """
        nothing = {key: torch.zeros(1) for key in self.keys}
        if float(self.expected(nothing)) > self.target:
            raise PassError(f"{self.target:,.0f} is below what is left when every unit of this pass is cut")
        return replace(self, target=min(self.target, self.full), wanted=self.target)

    @property
    def keys(self) -> tuple[Key, ...]:
        return unit_keys(self.config, self.units)

    @property
    def full(self) -> float:
        return float(self.expected({}))

    @property
    def unit(self) -> float:
        return min(unit_cost(self.config, layer, unit) for layer, unit in self.keys)

    def expected(self, kept: Values) -> Tensor:
        sizes = [self._layer(index, layer, kept) for index, layer in enumerate(self.config.layers)]
        total = torch.stack(sizes).sum()
        fixed = self.config.parameters() - self.config.prunable_parameters() if self.whole else 0
        return total + fixed

    def fill(self, scores: Values, decided: Values) -> dict[Key, Tensor]:
        """Cut from the lowest score up, never below the target; then one more, the one that meets it best.

        Where a large unit would overshoot it is passed over, and smaller ones are cut instead; what still fits then is
        given back. What comes out is at most the target, and less than one smallest unit below it. All of this goes by
        bundles; units that make no whole one are cut whatever they score.
        """
        parts = (bundles(k, v, self.multiples.get(k[1], 1), worst_first=True) for k, v in scores.items())
        order = sorted((bundle for part in parts for bundle in part), key=lambda e: e[0])
        gone = self._more(scores, [], order)
        for alike in self._by_cost(scores):
            taken = set(gone)
            gone = self._more(scores, gone, [e for e in order if e not in taken and e[1] in alike])
        while self._without(scores, gone) > self.target:
            gone.append(self._last(scores, gone, order))
        for alike in self._by_cost(scores):
            gone = self._fewer(scores, gone, alike)
        return self._masks(scores, gone)

    def measure(self, config: ModelConfig) -> float:
        return float(config.parameters()) if self.whole else replace(self, config=config).full

    def _more(self, scores: Values, gone: list[Bundle], rest: list[Bundle]) -> list[Bundle]:
        """`gone` and as many of `rest`, in order, as leave no less than the target."""
        return gone + rest[: _most(len(rest), lambda n: self._without(scores, gone + rest[:n]) >= self.target)]

    def _fewer(self, scores: Values, gone: list[Bundle], alike: set[Key]) -> list[Bundle]:
        """`gone` but for as many of these units, the best first, as still fit."""
        best = sorted((entry for entry in gone if entry[1] in alike), key=lambda e: e[0], reverse=True)

        def without(count: int) -> list[Bundle]:
            back = set(best[:count])
            return [entry for entry in gone if entry not in back]

        return without(_most(len(best), lambda n: self._without(scores, without(n)) <= self.target))

    def _by_cost(self, scores: Values) -> list[set[Key]]:
        """The layers' kinds of units, those that cost alike together, the dearest first."""
        alike: dict[float, set[Key]] = {}
        for key in scores:
            cost = unit_cost(self.config, *key) * self.multiples.get(key[1], 1)
            alike.setdefault(cost, set()).add(key)
        return [alike[cost] for cost in sorted(alike, reverse=True)]

    def _last(self, scores: Values, gone: list[Bundle], order: list[Bundle]) -> Bundle:
        """Of the lowest unit of each kind and layer, the one whose cut comes nearest below the target."""
        taken = set(gone)
        first: dict[Key, Bundle] = {}
        for entry in order:
            if entry not in taken:
                first.setdefault(entry[1], entry)
        sizes = {entry: self._without(scores, [*gone, entry]) for entry in first.values()}
        below = [entry for entry, size in sizes.items() if size <= self.target]
        best: Bundle = max(below, key=lambda e: sizes[e]) if below else min(sizes, key=lambda e: sizes[e])
        return best

    def _masks(self, scores: Values, gone: Iterable[Bundle]) -> dict[Key, Tensor]:
        cut: dict[Key, list[int]] = {key: [] for key in scores}
        for _, key, places in gone:
            cut[key] += places
        masks = {}
        for key, value in scores.items():
            masks[key] = torch.ones(value.numel(), dtype=torch.bool)
            masks[key][spare(value, self.multiples.get(key[1], 1))] = False
            masks[key][torch.tensor(cut[key], dtype=torch.long)] = False
        return masks

    def _without(self, scores: Values, gone: Iterable[Bundle]) -> float:
        return float(self.expected({key: mask.double() for key, mask in self._masks(scores, gone).items()}))

    def _layer(self, index: int, layer: LayerShape, kept: Values) -> Tensor:
        attention, feed_forward = self._attention(index, layer, kept), self._feed_forward(index, layer, kept)
        return _sum(kept, (index, "block"), 1) * (attention + feed_forward)

    def _attention(self, index: int, layer: LayerShape, kept: Values) -> Tensor:
        if not layer.heads or not self._counts("attention", "head", "dim_head"):
            return torch.zeros((), dtype=torch.double)
        heads, dims = _sum(kept, (index, "head"), layer.heads), _sum(kept, (index, "dim_head"), layer.dim_head)
        norm = _any(kept, (index, "head")) * _any(kept, (index, "dim_head")) if self._counts("attention") else 0.0
        return _sum(kept, (index, "attention"), 1) * (norm + heads * dims * 4) * self.config.dim_model

    def _feed_forward(self, index: int, layer: LayerShape, kept: Values) -> Tensor:
        if not layer.dim_ff or not self._counts("feed_forward", "dim_ff"):
            return torch.zeros((), dtype=torch.double)
        norm = _any(kept, (index, "dim_ff")) if self._counts("feed_forward") else 0.0
        inner = _sum(kept, (index, "dim_ff"), layer.dim_ff)
        return _sum(kept, (index, "feed_forward"), 1) * (norm + inner * 3) * self.config.dim_model

    def _counts(self, *units: str) -> bool:
        """Whether any of `units` counts here; a norm goes with its whole sublayer, not with units inside it."""
        return self.whole or bool({"block", "layer", *units} & set(self.units))


def _sum(kept: Values, key: Key, default: int) -> Tensor:
    return kept[key].double().sum() if key in kept else torch.tensor(float(default), dtype=torch.double)


def _any(kept: Values, key: Key) -> Tensor:
    if key not in kept:
        return torch.ones((), dtype=torch.double)
    return 1.0 - (1.0 - kept[key].double()).prod()


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest count up to `limit` for which `fits` holds, by bisection; it holds for 0."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
