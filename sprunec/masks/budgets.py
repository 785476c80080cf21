"""Budgets: how much of what may be kept, how much is expected while gates are soft, and which units fill it exactly.

Gates and scores are dicts from (layer, unit) to a tensor (units,). A layer's size is a product: a sublayer's gate times
what is kept inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sprunec.errors import PassError
from sprunec.model.config import LayerKept, LayerShape, ModelConfig

Key = tuple[int, str]
Values = Mapping[Key, Tensor]
Ranked = tuple[float, Key, int]
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


@dataclass(frozen=True)
class SizeBudget:
    """So many parameters, over all units of a pass together.

    Attributes:
        config: the model that enters the pass.
        units: what the pass may cut.
        whole: count the whole model, else only what these units can remove.
    """

    name: str
    config: ModelConfig
    units: tuple[str, ...]
    whole: bool
    target: float

    @property
    def keys(self) -> tuple[Key, ...]:
        return unit_keys(self.config, self.units)

    @property
    def full(self) -> float:
        return float(self.expected({}))

    @property
    def unit(self) -> float:
        return min(_unit_cost(self.config, layer, unit) for layer, unit in self.keys)

    def expected(self, kept: Values) -> Tensor:
        sizes = [self._layer(index, layer, kept) for index, layer in enumerate(self.config.layers)]
        total = torch.stack(sizes).sum()
        fixed = self.config.parameters() - self.config.prunable_parameters() if self.whole else 0
        return total + fixed

    def fill(self, scores: Values) -> dict[Key, Tensor]:
        """Cut from the lowest score up, never below the target; then one more, the one that meets it best.

        Where a large unit would overshoot it is passed over, and smaller ones are cut instead; what still fits then is
        given back. What comes out is at most the target, and less than one smallest unit below it.

        Raises:
            PassError: not even cutting everything is enough.
        """
        order = sorted(((float(s), k, i) for k, v in scores.items() for i, s in enumerate(v)), key=lambda e: e[0])
        if self._without(scores, order) > self.target:
            raise PassError(f"{self.target:,.0f} is below what is left when every unit of this pass is cut")
        gone = self._more(scores, [], order)
        for alike in self._by_cost(scores):
            taken = set(gone)
            gone = self._more(scores, gone, [e for e in order if e not in taken and e[1] in alike])
        while self._without(scores, gone) > self.target:
            gone.append(self._last(scores, gone, order))
        for alike in self._by_cost(scores):
            gone = self._fewer(scores, gone, alike)
        return self._masks(scores, gone)

    def _more(self, scores: Values, gone: list[Ranked], rest: list[Ranked]) -> list[Ranked]:
        """`gone` and as many of `rest`, in order, as leave no less than the target."""
        return gone + rest[: _most(len(rest), lambda n: self._without(scores, gone + rest[:n]) >= self.target)]

    def _fewer(self, scores: Values, gone: list[Ranked], alike: set[Key]) -> list[Ranked]:
        """`gone` but for as many of these units, the best first, as still fit."""
        best = sorted((entry for entry in gone if entry[1] in alike), key=lambda e: e[0], reverse=True)

        def without(count: int) -> list[Ranked]:
            back = set(best[:count])
            return [entry for entry in gone if entry not in back]

        return without(_most(len(best), lambda n: self._without(scores, without(n)) <= self.target))

    def _by_cost(self, scores: Values) -> list[set[Key]]:
        """The layers' kinds of units, those that cost alike together, the dearest first."""
        alike: dict[float, set[Key]] = {}
        for key in scores:
            alike.setdefault(_unit_cost(self.config, *key), set()).add(key)
        return [alike[cost] for cost in sorted(alike, reverse=True)]

    def _last(self, scores: Values, gone: list[Ranked], order: list[Ranked]) -> Ranked:
        """Of the lowest unit of each kind and layer, the one whose cut comes nearest below the target."""
        taken = set(gone)
        first: dict[Key, Ranked] = {}
        for entry in order:
            if entry not in taken:
                first.setdefault(entry[1], entry)
        sizes = {entry: self._without(scores, [*gone, entry]) for entry in first.values()}
        below = [entry for entry, size in sizes.items() if size <= self.target]
        best: Ranked = max(below, key=lambda e: sizes[e]) if below else min(sizes, key=lambda e: sizes[e])
        return best

    def _masks(self, scores: Values, gone: Iterable[Ranked]) -> dict[Key, Tensor]:
        masks = {key: torch.ones(value.numel(), dtype=torch.bool) for key, value in scores.items()}
        for _, key, place in gone:
            masks[key][place] = False
        return masks

    def _without(self, scores: Values, gone: Iterable[Ranked]) -> float:
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


def _unit_cost(config: ModelConfig, layer: int, unit: str) -> float:
    shape, width = config.layers[layer], config.dim_model
    return {
        "block": config.attention_parameters(layer) + config.feed_forward_parameters(layer),
        "attention": config.attention_parameters(layer),
        "feed_forward": config.feed_forward_parameters(layer),
        "head": 4 * shape.dim_head * width,
        "dim_head": 4 * shape.heads * width,
        "dim_ff": 3 * width,
    }[unit]


# --- from a plan's words to budgets ---


def gate_units(units: Iterable[str]) -> tuple[str, ...]:
    """`layer` means both kinds of sublayers, gated one by one."""
    both = ("attention", "feed_forward")
    return tuple(dict.fromkeys(each for unit in units for each in (both if unit == "layer" else (unit,))))


def unit_sizes(config: ModelConfig, units: Iterable[str]) -> dict[Key, int]:
    """How many units of each kind each layer has; layers that have none are left out."""
    sizes: dict[Key, int] = {}
    for index, layer in enumerate(config.layers):
        counts = {
            "block": int(bool(layer.heads or layer.dim_ff)),
            "attention": int(bool(layer.heads)),
            "feed_forward": int(bool(layer.dim_ff)),
            "head": layer.heads,
            "dim_head": layer.dim_head,
            "dim_ff": layer.dim_ff,
        }
        sizes |= {(index, unit): counts[unit] for unit in gate_units(units) if counts[unit]}
    return sizes


def unit_keys(config: ModelConfig, units: Iterable[str]) -> tuple[Key, ...]:
    return tuple(unit_sizes(config, units))


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


def apply_masks(kept: tuple[LayerKept, ...], masks: Mapping[Key, Tensor]) -> tuple[LayerKept, ...]:
    """What is left of `kept` after the masks of this pass; a sublayer left with no unit becomes absent."""
    return tuple(_apply_to_layer(layer, index, masks) for index, layer in enumerate(kept))


def _apply_to_layer(layer: LayerKept, index: int, masks: Mapping[Key, Tensor]) -> LayerKept:
    def part(unit: str, before: tuple[int, ...] | None) -> tuple[int, ...] | None:
        mask = masks.get((index, unit))
        return before if before is None or mask is None else tuple(i for i, m in zip(before, mask, strict=True) if m)

    def closed(unit: str) -> bool:
        return (index, unit) in masks and not bool(masks[(index, unit)].any())

    heads, dims, inner = part("head", layer.heads), part("dim_head", layer.dim_head), part("dim_ff", layer.dim_ff)
    if closed("block") or closed("attention") or not heads or not dims:
        heads = dims = None
    if closed("block") or closed("feed_forward") or not inner:
        inner = None
    return LayerKept(heads, dims, inner)
