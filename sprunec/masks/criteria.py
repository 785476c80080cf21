"""The criteria by which units are scored: rows of a table, without torch; `masks/scores.py` has the arithmetic."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sprunec.plan.declared import Criterion

if TYPE_CHECKING:
    from torch import Tensor

    from sprunec.units import Key


def _score(function: str, given: Any) -> dict[Key, Tensor]:
    """Import the arithmetic, and torch with it, when something is scored."""
    found: dict[Key, Tensor] = getattr(import_module("sprunec.masks.scores"), function)(given)
    return found


RANDOM = Criterion("random", partial(_score, "random"), calibrates=False)
MAGNITUDE = Criterion("magnitude", partial(_score, "magnitude"), calibrates=False)
TAYLOR = Criterion("taylor", partial(_score, "taylor"))
ACTIVATION = Criterion("activation", partial(_score, "activation"))
RECONSTRUCTION = Criterion("reconstruction", partial(_score, "reconstruction"))
