"""How large the model will be after each mask pass, before anything has run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sprunec.plan.targets import Left


def planned(left: Left, units: tuple[str, ...], target: Mapping[str, Any]) -> Left:
    """What is left after a target; a count that layers share out by themselves is taken as the same in each.

    The parameters are then exact but for the norms of sublayers that end up empty, so never too few.
    """
    if "sparsity" in target:
        removable = left.parameters - left.least_parameters(units)
        return replace(left.unknown(), parameters=left.parameters - int(target["sparsity"] * removable))
    return left.after(target, "per-layer")
