"""How many units a model has and what they weigh, the one arithmetic of sizes; needs no torch.

A sublayer has some vectors of the model's width once (its norm), and some for each entry of its inner width, which is
the product of the numbers of its units: see `config.VECTORS`. Everything that counts parameters comes from there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from functools import reduce
from operator import add, mul
from typing import Any, NamedTuple

from sprunec.families.cpm_ant.config import VECTORS, LayerShape, ModelConfig
from sprunec.units import INSIDE, UNITS, Kept, Key, gate_units, sublayers_of


class Amount(NamedTuple):
    """So many units of one kind and layer, and how likely there are any: numbers, or tensors that carry gradients."""

    count: Any
    some: Any


def everything(config: ModelConfig) -> Kept:
    return Kept.all(layer.counts for layer in config.layers)


def unit_sizes(config: ModelConfig, units: Iterable[str]) -> dict[Key, int]:
    """Count the units of each kind that each layer has; layers that have none are left out."""
    sizes: dict[Key, int] = {}
    for index, layer in enumerate(config.layers):
        kinds = sublayers_of(layer.counts)
        counts = layer.counts | dict.fromkeys((*kinds, "block") if kinds else (), 1)
        sizes |= {(index, unit): counts[unit] for unit in gate_units(units) if unit in counts}
    return sizes


def unit_cost(config: ModelConfig, layer: int, unit: str) -> int:
    """Count the parameters of one unit, beside all others that the layer has."""
    if unit not in INSIDE:
        return sum(config.sublayer_parameters(layer, kind) for kind in UNITS[unit].sublayers)
    others = (n for other, n in config.layers[layer].counts.items() if INSIDE[other] == INSIDE[unit] and other != unit)
    return VECTORS[INSIDE[unit]][1] * math.prod(others) * config.dim_model


def layer_sizes(config: ModelConfig, units: Collection[str], kept: Mapping[Key, Amount]) -> list[Any]:
    """Count by layer the parameters that `units` can remove: whole sublayers with norms, or what is inside them.

    Args:
        kept: how much there is of units; of others there is all.
    """
    whole = sublayers_of(unit for unit in units if unit not in INSIDE)
    counted = {kind: int(kind in whole) for kind in sublayers_of(units)}
    return [_layer_size(config.dim_model, shape, index, counted, kept) for index, shape in enumerate(config.layers)]


def _layer_size(width: int, shape: LayerShape, index: int, norms: Mapping[str, int], kept: Mapping[Key, Amount]) -> Any:
    sizes = []
    for kind, norm in norms.items():
        inside = {unit: n for unit, n in shape.counts.items() if INSIDE[unit] == kind}
        if inside:
            amounts = [kept.get((index, unit), Amount(count, 1)) for unit, count in inside.items()]
            once, each = VECTORS[kind]
            vectors = reduce(mul, (amount.count for amount in amounts)) * each
            if norm:
                vectors = reduce(mul, (amount.some for amount in amounts)) * once + vectors
            sizes.append(_gated(vectors, kept.get((index, kind))) * width)
    return _gated(reduce(add, sizes), kept.get((index, "block"))) if sizes else 0


def _gated(size: Any, gate: Amount | None) -> Any:
    return size if gate is None else gate.count * size


def removable(config: ModelConfig, units: Collection[str]) -> int:
    """Count the parameters that units can remove."""
    return sum(layer_sizes(config, units, {}))


def parameters_without(config: ModelConfig, units: Iterable[str]) -> int:
    """Count what stays when every one of these units is cut; a sublayer without units goes with its norm."""
    return config.parameters() - removable(config, sublayers_of(units))
