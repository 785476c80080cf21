"""Units and targets: which go together, and what a model has left of each from pass to pass."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from sprunec.families.cpm_ant.config import LayerShape, ModelConfig

# a count target: the units it can count
UNITS_OF = {
    "num_layers": ("block",),
    "num_attention": ("attention", "layer"),
    "num_feed_forward": ("feed_forward", "layer"),
    "num_heads": ("head",),
    "dim_head": ("dim_head",),
    "dim_ff": ("dim_ff",),
}
SIZES = ("sparsity", "parameters")
SUBLAYERS = ("block", "layer", "attention", "feed_forward")
FIELDS = {"num_heads": "heads", "dim_head": "dim_head", "dim_ff": "dim_ff"}
_CUTS_ATTENTION = {"block", "layer", "attention", "head", "dim_head"}
_CUTS_FEED_FORWARD = {"block", "layer", "feed_forward", "dim_ff"}
ANY_COUNT: Mapping[str, int] = MappingProxyType({})
_SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9}


def counts_for(unit: str) -> tuple[str, ...]:
    """The count targets that a unit needs: `layer` needs two."""
    return tuple(key for key, units in UNITS_OF.items() if unit in units)


def mismatched(units: Collection[str], target: Iterable[str]) -> list[str]:
    """The count targets that count none of the units."""
    return [key for key in target if key in UNITS_OF and not set(UNITS_OF[key]) & set(units)]


def uncovered(units: Iterable[str], target: Collection[str]) -> list[str]:
    """The count targets that are missing; a size target leaves none open."""
    if any(size in target for size in SIZES):
        return []
    return list(dict.fromkeys(key for unit in units for key in counts_for(unit) if key not in target))


def parameter_count(written: float | str) -> int:
    """300000000 and "300M" are one number."""
    if isinstance(written, str):
        return round(Fraction(written[:-1]) * _SUFFIXES[written[-1]])
    return int(written)


def removable(config: ModelConfig, units: Collection[str]) -> int:
    """What a pass's units can remove: whole sublayers with their norms, or the matrices inside them."""
    total = 0
    for index in range(config.num_layers):
        attention, feed_forward = config.attention_parameters(index), config.feed_forward_parameters(index)
        if {"block", "layer", "attention"} & set(units):
            total += attention
        elif {"head", "dim_head"} & set(units) and attention:
            total += attention - config.dim_model
        if {"block", "layer", "feed_forward"} & set(units):
            total += feed_forward
        elif "dim_ff" in units and feed_forward:
            total += feed_forward - config.dim_model
    return total


@dataclass(frozen=True)
class Left:
    """What a plan's model still has at one point of the plan; never too small where it is not known exactly.

    Attributes:
        counts: the most that each count target could ask for.
        means: heads, head dims and feed-forward dims per sublayer on average, for a global budget.
        layers: the exact shapes, in any order; None once a pass chooses them by itself.
        config: the model with these shapes; where they are unknown, with the last known ones.
        parameters: the most that the whole model can have.
    """

    counts: Mapping[str, int]
    means: Mapping[str, Fraction]
    layers: tuple[LayerShape, ...] | None
    config: ModelConfig
    parameters: int

    @classmethod
    def of(cls, config: ModelConfig) -> Left:
        return cls(_counts(config.layers), _means(config.layers), config.layers, config, config.parameters())

    def most(self, key: str, budget: str) -> int:
        """The largest count that means anything under this budget."""
        if budget == "global" and key in self.means:
            return min(int(self.means[key]), self.counts[key])
        return self.counts[key]

    def least_parameters(self, units: Iterable[str]) -> int:
        """What stays when every one of these units is cut; a sublayer without units goes with its norm."""
        kinds = set(units)
        now = self.config.parameters()
        if self.layers is None:
            return now - self.config.prunable_parameters()
        each = range(self.config.num_layers)
        attention = sum(self.config.attention_parameters(i) for i in each) if kinds & _CUTS_ATTENTION else 0
        feed_forward = sum(self.config.feed_forward_parameters(i) for i in each) if kinds & _CUTS_FEED_FORWARD else 0
        return now - attention - feed_forward

    def unknown(self) -> Left:
        """After a pass that may have cut anything."""
        return replace(self, layers=None)

    def after(self, target: Mapping[str, Any], budget: str, multiple_of: Mapping[str, int] = ANY_COUNT) -> Left:
        """What is left once a pass has reached its target."""
        counts = {key: min(self.counts[key], target.get(key, self.counts[key])) for key in self.counts}
        means = {key: min(self.means[key], Fraction(counts[key])) for key in self.means}
        if any(key in target for key in ("num_layers", "num_attention", "num_feed_forward", *SIZES)):
            means = {key: Fraction(counts[key]) for key in self.means}
        if budget == "global":
            counts |= {key: self.counts[key] for key in FIELDS}
            means = {key: min(means[key], Fraction(target.get(key, means[key]))) for key in means}
        counts["num_layers"] = min(counts["num_layers"], counts["num_attention"] + counts["num_feed_forward"])
        counts["num_attention"] = min(counts["num_attention"], counts["num_layers"])
        counts["num_feed_forward"] = min(counts["num_feed_forward"], counts["num_layers"])
        layers = _cut(self.layers, target, budget, multiple_of)
        if layers is None:
            parameters = min(self.parameters, target.get("parameters", self.parameters))
            return Left(counts, means, None, self.config, parameters)
        config = replace(self.config, layers=layers)
        return Left(_counts(layers), _means(layers), layers, config, config.parameters())


def _counts(layers: Iterable[LayerShape]) -> dict[str, int]:
    shapes = list(layers)
    return {
        "num_layers": sum(1 for layer in shapes if layer.heads or layer.dim_ff),
        "num_attention": sum(1 for layer in shapes if layer.heads),
        "num_feed_forward": sum(1 for layer in shapes if layer.dim_ff),
    } | {key: max((getattr(layer, name) for layer in shapes), default=0) for key, name in FIELDS.items()}


def _means(layers: Iterable[LayerShape]) -> dict[str, Fraction]:
    shapes = list(layers)
    present = {key: [getattr(layer, name) for layer in shapes if getattr(layer, name)] for key, name in FIELDS.items()}
    return {key: Fraction(sum(sizes), max(len(sizes), 1)) for key, sizes in present.items()}


def _cut(
    layers: tuple[LayerShape, ...] | None, target: Mapping[str, Any], budget: str, multiple_of: Mapping[str, int]
) -> tuple[LayerShape, ...] | None:
    """The shapes after count targets; None where the pass itself chooses among unlike ones."""
    if layers is None or any(size in target for size in SIZES):
        return None
    by_layer = [key for key in target if key in FIELDS]
    if by_layer and budget == "global":
        return None
    for key in by_layer:
        layers = tuple(_trimmed(layer, key, target[key], multiple_of.get(key, 1)) for layer in layers)
    for key, names in _GONE.items():
        layers = _drop(layers, target[key], names) if layers is not None and key in target else layers
    return None if layers is None else tuple(replace(layer, kept_heads=None) for layer in layers)


def _trimmed(layer: LayerShape, key: str, wanted: int, multiple: int) -> LayerShape:
    """A sublayer left with none of its units is absent."""
    most = most_kept(getattr(layer, FIELDS[key]), wanted, multiple)
    names = (FIELDS[key],) if most else next(names for names in _GONE.values() if FIELDS[key] in names)
    sizes: dict[str, Any] = dict.fromkeys(names, most)
    return replace(layer, **sizes)


def most_kept(size: int, wanted: int, multiple: int) -> int:
    """Of a layer with `size` units that is asked for `wanted`, in whole multiples."""
    return min(size, wanted) // multiple * multiple


_GONE = {
    "num_attention": ("heads", "dim_head"),
    "num_feed_forward": ("dim_ff",),
    "num_layers": ("heads", "dim_head", "dim_ff"),
}


def _drop(layers: tuple[LayerShape, ...], keep: int, names: tuple[str, ...]) -> tuple[LayerShape, ...] | None:
    """Without all but `keep` of these sublayers, if they are alike: then it doesn't matter which ones go."""
    sizes = [tuple(getattr(layer, name) for name in names) for layer in layers]
    present = [index for index, size in enumerate(sizes) if any(size)]
    if len(present) > keep and len({sizes[index] for index in present}) > 1:
        return None
    gone = set(present[keep:])
    nothing: dict[str, Any] = dict.fromkeys(names, 0)
    return tuple(replace(layer, **nothing) if index in gone else layer for index, layer in enumerate(layers))
