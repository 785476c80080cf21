"""The table of criteria, by which units are scored. Importing the modules that declare them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from sprunec.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from sprunec.units import Key


@dataclass(frozen=True)
class Criterion:
    """One way to score units: the higher, the more worth keeping.

    Attributes:
        function: `module:name` of what makes the scores, which is imported, and torch with it, when there are any to
            make: from `masks.criteria.Weights` or `Calibration`, by (layer, unit), a tensor (units,).
        calibrates: whether it needs the latter, which runs batches through the model.
    """

    name: str
    function: str
    calibrates: bool = True

    def score(self, given: Any) -> dict[Key, Tensor]:
        found: dict[Key, Tensor] = resolve_name(self.function)(given)
        return found


CRITERIA = Registry(Criterion, "sprunec.masks.criteria")


def calibrates(criterion: object) -> bool:
    """Tell whether scoring by it runs batches through the model; what a plan writes need not be a name."""
    return isinstance(criterion, str) and criterion in CRITERIA and CRITERIA[criterion].calibrates
