"""A choice as a change of weights: its members' columns refitted, all others zero, which cuts them as a mask does."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.data.batches import in_use
from sprunec.masks.calibration import BlockStatistics, held_weight
from sprunec.masks.least_squares import refit
from sprunec.masks.refitting import Refit
from sprunec.models.block_by_block import BlockByBlock
from sprunec.rewrite.projections import Projection
from sprunec.rewrite.taps import tap
from sprunec.rewrite.trace import TracedBlock


@dataclass(frozen=True)
class Change:
    """A projection's weight as a choice has it: of the old one's shape, in float32."""

    projection: Projection
    old: Tensor
    new: Tensor

    @property
    def difference(self) -> Tensor:
        """(outputs, features)."""
        return self.projection.columns(self.new - self.old)


Made = Sequence[Change] | str  # what a choice is made of: other weights, or the name of what is absent


def change(model: nn.Module, statistics: BlockStatistics, each: Refit, ridge: float) -> Change:
    """Refit what a choice leaves of a projection, whose block has its weights, toward what the weights were.

    Args:
        statistics: with a `SecondMoment` of what goes into each projection.
    """
    moment: Any = next(
        found for projection, _, found in statistics.inputs if projection.tensor == each.projection.tensor
    )
    old = held_weight(model, each.projection.block, each.projection)
    new, kept = torch.zeros_like(old), torch.tensor(each.kept, device=old.device)
    fitted = refit(moment, each.projection.columns(old), kept, ridge=ridge)
    each.projection.columns(new)[:, kept] = fitted
    return Change(each.projection, old, new)


@contextmanager
def changed(model: nn.Module, block: TracedBlock, changes: Sequence[Change]) -> Iterator[None]:
    """Give a block, which has its weights, a choice's meanwhile."""
    held = {}
    for each in changes:
        owner, _, leaf = f"{block.path}.{each.projection.tensor}".rpartition(".")
        held[leaf, each.projection.tensor] = model.get_submodule(owner)._parameters
        model.get_submodule(owner)._parameters[leaf] = each.new  # type: ignore[assignment]
    try:
        yield
    finally:
        for ((leaf, _), parameters), each in zip(held.items(), changes, strict=True):
            parameters[leaf] = each.old  # type: ignore[assignment]


@contextmanager
def seeing(holder: nn.Module, nodes: Collection[str]) -> Iterator[Mapping[str, Tensor]]:
    """See what nodes of a block gave when it ran last, by their names; meanwhile."""
    found = dict[str, Tensor]()

    def see(node: str) -> object:
        def hook(module: nn.Module, given: object, result: Tensor) -> None:
            found[node] = result

        return tap(holder, node).register_forward_hook(hook)  # type: ignore[arg-type]

    handles = [see(node) for node in nodes]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]


def by_position(way: BlockByBlock, states: Tensor) -> Tensor:
    """See states (S, ...) inside a block as (S, B, N, features): some blocks put the positions of all rows together."""
    return states.reshape(len(states), *in_use(way.current).shape, -1)
