"""How large the model will be after each mask pass, before anything has run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sprunec.plan.targets import ANY_COUNT, Left, removable


def planned(
    left: Left, units: tuple[str, ...], target: Mapping[str, Any], multiple_of: Mapping[str, int] = ANY_COUNT
) -> Left:
    """What is left after a target; a count that layers share out by themselves is taken as the same in each.

    The parameters are then exact but for the norms of sublayers that end up empty. Where an earlier pass has chosen
    shapes by itself, a share of them is not known: the size before is kept. So they are never too few.
    """
    if "sparsity" not in target:
        return left.after(target, "per-layer", multiple_of)
    if left.layers is None:
        return left
    removed = int(target["sparsity"] * removable(left.config, units))
    return replace(left.unknown(), parameters=left.parameters - removed)
