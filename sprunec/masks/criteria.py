"""The criteria by which units are scored: rows of a table, without torch; `masks/scores.py` and `masks/depth.py` have
the arithmetic."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any, Literal

from sprunec.plan.declared import Criterion


def _score(function: str, given: Any, module: str = "scores") -> Any:
    """Import the arithmetic, and torch with it, when something is scored."""
    return getattr(import_module(f"sprunec.masks.{module}"), function)(given)


def _of_blocks(name: str, needs: Literal["states", "losses"], again: bool = False) -> Criterion:
    return Criterion(name, partial(_score, name.replace("-", "_"), module="depth"), needs, "block", again)


RANDOM, MAGNITUDE = (Criterion(name, partial(_score, name), "weights") for name in ("random", "magnitude"))
ACTIVATION = Criterion("activation", partial(_score, "activation"), "squares")
RECONSTRUCTION = Criterion("reconstruction", partial(_score, "reconstruction"), "products")
TAYLOR = Criterion("taylor", partial(_score, "taylor"), "gradients")
INFLUENCE, ANGLE = (_of_blocks(name, "states") for name in ("block-influence", "angular-distance"))
REMOVAL = _of_blocks("removal-loss", "losses")
ITERATIVE = _of_blocks("iterative-removal", "losses", again=True)
