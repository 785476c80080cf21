"""Which units a choice keeps: the best by their scores, and of heads as many in each key-value group that stays."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sprunec.masks.granularity import groups
from sprunec.plan.search.choices import Choice
from sprunec.units import INSIDE, UNITS, Cut, Indices, Kept, Key


def members(scores: Mapping[Key, Tensor], whole: Kept, choice: Choice) -> Mapping[str, Indices]:
    """Give what a choice leaves of its layer; whatever lies outside of its sublayer stays.

    Args:
        scores: by layer and unit, (units,); of what is cut. Of equal ones the first in the layer stays.
        whole: what the model has; the indices are its own.
    """
    layer = whole[choice.layer]
    found = {unit: kept for unit, kept in layer.items() if INSIDE[unit] not in UNITS[choice.sublayer].sublayers}
    if not choice.kept:
        return found

    def best(unit: str, count: int, within: int = 1) -> Indices:
        if count == len(layer[unit]):
            return layer[unit]
        ranked = groups((choice.layer, unit), scores[choice.layer, unit], within, within=within)
        return tuple(sorted(index for _, _, units in ranked[: count // within] for index in units))

    for unit, count in choice.kept.items():
        if unit != "head" or "kv_group" not in layer:
            found[unit] = best(unit, count)
    if (open_groups := found.get("kv_group")) is not None and "head" in choice.kept:
        each, many = len(layer["head"]) // len(layer["kv_group"]), len(layer["kv_group"])
        heads = best("head", choice.kept["head"] // len(open_groups) * many, many)
        found["head"] = tuple(head for head in heads if head // each in open_groups)
    return found


def left_by(scores: Mapping[Key, Tensor], whole: Kept, choice: Choice) -> Cut:
    """Say what is left of a model of which nothing but this choice is cut."""
    layers = list(whole)
    layers[choice.layer] = members(scores, whole, choice)
    return Cut(layers)
