"""The table of criteria, by which units are scored. Importing the modules that declare them imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sprunec.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from sprunec.units import Key


@dataclass(frozen=True)
class Criterion:
    """One way to score units: the higher, the more worth keeping.

    Attributes:
        score: by (layer, unit), a tensor (units,); of `masks.criteria.Weights`, or of `masks.criteria.Calibration`.
        calibrates: whether it needs the latter, which runs batches through the model.
    """

    name: str
    score: Callable[[Any], dict[Key, Tensor]]
    calibrates: bool = True


CRITERIA = Registry(Criterion, "sprunec.masks.criteria")


def calibrates(criterion: object) -> bool:
    """Tell whether scoring by it runs batches through the model; what a plan writes need not be a name."""
    return isinstance(criterion, str) and criterion in CRITERIA and CRITERIA[criterion].calibrates
