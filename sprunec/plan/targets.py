"""Units and targets: which go together, and what a model has left of each from pass to pass."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from sprunec.errors import show
from sprunec.families.base_config import LayerShape, ModelConfig, parameters_without, removable, unit_cost, unit_sizes
from sprunec.units import COUNTED, INSIDE, SIZE_TARGETS, UNITS, counting

Multiples = Mapping[str, int]
NO_MULTIPLES: Multiples = MappingProxyType({})
WHOLE_TARGETS = tuple(target for target, unit in COUNTED.items() if not unit.field)
_SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9}


def mismatched(units: Collection[str], target: Iterable[str]) -> list[str]:
    """List the count targets that count none of the units."""
    return [key for key in target if key in COUNTED and not set(counting(key)) & set(units)]


def uncovered(units: Iterable[str], target: Collection[str]) -> list[str]:
    """List the count targets that are missing, `layer` needs two; a size target leaves none open."""
    if any(size in target for size in SIZE_TARGETS):
        return []
    needed = (key for unit in units for key in COUNTED if unit in counting(key))
    return list(dict.fromkeys(key for key in needed if key not in target))


def quoted(units: Iterable[str], between: str = " and ") -> str:
    return between.join(map(show, units))


def parameter_count(written: float | str) -> int:
    """Read a number of parameters: 300000000 and "300M" are one."""
    return round(Fraction(written[:-1]) * _SUFFIXES[written[-1]]) if isinstance(written, str) else int(written)


@dataclass(frozen=True)
class Left:
    """What a plan's model still has at one point of the plan; never too small where it is not known exactly.

    Attributes:
        counts: the most that each count target could ask for.
        means: heads, head dims and feed-forward dims per sublayer on average, for a global budget.
        config: the model; once a pass has chosen shapes by itself, with the last known ones.
        parameters: the most that the whole model can have.
        known: whether its shapes are, in any order.
    """

    counts: Mapping[str, int]
    means: Mapping[str, Fraction]
    config: ModelConfig
    parameters: int
    known: bool = True

    @classmethod
    def of(cls, config: ModelConfig) -> Left:
        there: dict[str, list[int]] = {target: [] for target in COUNTED}
        for (_, unit), count in unit_sizes(config, UNITS).items():
            there[UNITS[unit].target].append(count)
        counts = {key: sum(n) if key in WHOLE_TARGETS else max(n, default=0) for key, n in there.items()}
        means = {key: Fraction(sum(n), max(len(n), 1)) for key, n in there.items() if key not in WHOLE_TARGETS}
        return cls(counts, means, config, config.parameters())

    def most(self, key: str, budget: str) -> int:
        """Give the largest count that means anything under this budget."""
        count = self.counts[key]
        return min(int(self.means[key]), count) if budget == "global" and key in self.means else count

    def least_parameters(self, units: Iterable[str]) -> int:
        """Count what stays when every one of these units is cut; of unknown shapes, when everything is."""
        return parameters_without(self.config, units if self.known else ("block",))

    def unknown(self) -> Left:
        """Follow a pass that may have cut anything."""
        return replace(self, known=False)

    def after(self, target: Mapping[str, Any], budget: str, multiple_of: Multiples = NO_MULTIPLES) -> Left:
        """Follow a pass that reaches its target."""
        config = _cut(self.config, target, budget, multiple_of) if self.known else None
        if config is not None:
            return Left.of(config)
        counts = {key: min(count, target.get(key, count)) for key, count in self.counts.items()}
        means = {key: min(mean, Fraction(counts[key])) for key, mean in self.means.items()}
        if any(key in target for key in (*WHOLE_TARGETS, *SIZE_TARGETS)):  # which sublayers go is not known
            means = {key: Fraction(counts[key]) for key in means}
        if budget == "global":
            counts |= {key: self.counts[key] for key in means}
            means = {key: min(mean, Fraction(target.get(key, mean))) for key, mean in means.items()}
        counts["num_layers"] = min(counts["num_layers"], counts["num_attention"] + counts["num_feed_forward"])
        counts |= {key: min(counts[key], counts["num_layers"]) for key in ("num_attention", "num_feed_forward")}
        return Left(counts, means, self.config, min(self.parameters, target.get("parameters", self.parameters)), False)

    def planned(self, units: Collection[str], target: Mapping[str, Any], multiple_of: Multiples = NO_MULTIPLES) -> Left:
        """Follow as `after`; a count that layers share out by themselves is taken as the same in each.

        The parameters are then exact but for the norms of sublayers that end up empty. Where an earlier pass has chosen
        shapes by itself, a share of them is not known: the size before is kept. So they are never too few.
        """
        if "sparsity" not in target:
            return self.after(target, "per-layer", multiple_of)
        removed = int(target["sparsity"] * removable(self.config, units)) if self.known else 0
        return replace(self, known=False, parameters=self.parameters - removed)


def blocks_dropped(config: ModelConfig, target: Mapping[str, Any]) -> int:
    """Count the blocks that a target takes away, by their mean size where it is a size: one at least, and not all."""
    sizes = [unit_cost(config, index, "block") for index, _ in unit_sizes(config, ("block",))]
    if "num_layers" in target:
        gone = len(sizes) - target["num_layers"]
    else:
        wanted = target["sparsity"] * sum(sizes) if "sparsity" in target else config.parameters() - target["parameters"]
        gone = math.ceil(wanted * len(sizes) / sum(sizes))
    return int(max(1, min(gone, len(sizes) - 1)))


def _cut(config: ModelConfig, target: Mapping[str, Any], budget: str, multiple_of: Multiples) -> ModelConfig | None:
    """Cut the model to count targets; None where the pass itself chooses among unlike units."""
    by_layer = [COUNTED[key] for key in target if key in COUNTED and key not in WHOLE_TARGETS]
    if any(size in target for size in SIZE_TARGETS) or (by_layer and budget == "global"):
        return None
    layers = [layer.resized({}) for layer in config.layers]
    for unit in by_layer:
        layers = trimmed(layers, unit.name, target[unit.target], multiple_of.get(unit.target, 1))
    for unit in (UNITS["attention"], UNITS["feed_forward"], UNITS["block"]):
        nothing = {name: 0 for name, kind in INSIDE.items() if kind in unit.sublayers}
        sizes = [tuple(layer.counts.get(name, 0) for name in nothing) for layer in layers]
        present = [index for index, size in enumerate(sizes) if any(size)]
        keep = target.get(unit.target, len(layers))
        if len(present) > keep and len({sizes[index] for index in present}) > 1:
            return None  # were they alike, it would not matter which ones go
        gone = present[keep:]
        layers = [layer.resized(nothing) if index in gone else layer for index, layer in enumerate(layers)]
    return config.with_layers(layers)


def trimmed(layers: Sequence[LayerShape], unit: str, wanted: int, multiple: int) -> list[LayerShape]:
    """Cut every layer to a count; a sublayer left with none of its units is absent."""
    return [layer.resized({unit: most_kept(layer.counts.get(unit, 0), wanted, multiple)}) for layer in layers]


def most_kept(size: int, wanted: int, multiple: int) -> int:
    """Tell what a layer of `size` units keeps that is asked for `wanted`, in whole multiples."""
    return min(size, wanted) // multiple * multiple
