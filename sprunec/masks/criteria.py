"""The criteria by which units are scored: rows of a table, without torch; `masks/scores.py` has the arithmetic."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

from sprunec.plan.declared import Criterion


def _score(function: str, given: Any) -> Any:
    """Import the arithmetic, and torch with it, when something is scored."""
    return getattr(import_module("sprunec.masks.scores"), function)(given)


RANDOM, MAGNITUDE = (Criterion(name, partial(_score, name), "weights") for name in ("random", "magnitude"))
ACTIVATION = Criterion("activation", partial(_score, "activation"), "squares")
RECONSTRUCTION = Criterion("reconstruction", partial(_score, "reconstruction"), "products")
TAYLOR = Criterion("taylor", partial(_score, "taylor"), "gradients")
