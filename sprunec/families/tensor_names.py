"""Which tensors of a model a plan means by a pattern, and what of them trains; needs no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from sprunec.families.base_config import ModelConfig
from sprunec.units import INSIDE, SUBLAYERS

_SHELL = re.compile(r"[*?\[]")


def sublayer_tensors(config: ModelConfig, kind: str) -> set[str]:
    """Name what a model loses with all its sublayers of one kind."""
    none = {unit: 0 for unit, sublayer in INSIDE.items() if sublayer == kind}
    return {*config.tensors()} - {*config.with_layers(layer.resized(none) for layer in config.layers).tensors()}


def selected(config: ModelConfig, patterns: Iterable[str]) -> set[str]:
    """Name the tensors that any of the patterns means.

    The name of a kind of sublayer is all that is in these; what has `*`, `?` or `[` in it is a pattern of whole names,
    as shells have them; anything else is a part of a name.
    """
    names, found = config.tensors(), set[str]()
    for pattern in patterns:
        if pattern in SUBLAYERS:
            found |= sublayer_tensors(config, pattern)
        elif _SHELL.search(pattern):
            found |= {name for name in names if fnmatchcase(name, pattern)}
        else:
            found |= {name for name in names if pattern in name}
    return found


def projections(config: ModelConfig, patterns: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Give those of the tensors that the patterns mean which are matrices of a sublayer."""
    wanted = selected(config, patterns) & set[str]().union(*(sublayer_tensors(config, kind) for kind in SUBLAYERS))
    return {name: shape for name, shape in config.tensors().items() if name in wanted and len(shape) == 2}


def trained_parameters(config: ModelConfig, freeze: Iterable[str], rank: int, targets: Iterable[str]) -> int:
    """Count what gets gradients and moments: weights that are not frozen, or adapters of a rank, if there is one."""
    if rank:
        return rank * sum(sum(shape) for shape in projections(config, targets).values())
    frozen = selected(config, freeze)
    return sum(math.prod(shape) for name, shape in config.tensors().items() if name not in frozen)
