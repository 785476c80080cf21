"""A choice as a change of weights: its members' columns refitted, all others zero, which cuts them as a mask does."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from sprunec.data.batches import in_use
from sprunec.masks.calibration import held_weight
from sprunec.masks.refitting import Refit
from sprunec.masks.search.ordered_factor import OrderedFactor
from sprunec.models.block_by_block import BlockByBlock, Enough
from sprunec.rewrite.projections import Projection
from sprunec.rewrite.taps import tap
from sprunec.rewrite.trace import TracedBlock


@dataclass(frozen=True)
class Nested:
    """Choices of a sublayer, each of which keeps all that those before it do.

    Attributes:
        factors: by projection, of its inputs with those in front that the first choices keep.
        counts: for each choice, how many inputs it keeps of each projection.
        taken: which of them the model has that they are measured in; None: none.
    """

    factors: Sequence[tuple[Projection, OrderedFactor]]
    counts: Sequence[Sequence[int]]
    taken: int | None = None

    def changes(self, model: nn.Module, number: int) -> list[Change]:
        """Make one of them in its block, which has its weights."""
        found = []
        for (projection, factor), count in zip(self.factors, self.counts[number], strict=True):
            old = held_weight(model, projection.block, projection)
            new = torch.empty_like(old)
            projection.columns(new).copy_(factor.refit(projection.columns(old), count))
            found.append(Change(projection, old, new))
        return found


@dataclass(frozen=True)
class Change:
    """A projection's weight as a choice has it: of the old one's shape, in float32."""

    projection: Projection
    old: Tensor
    new: Tensor


Made = Nested | str  # what choices are made of: other weights, or the name of what is absent


def ordered(choices: Sequence[Sequence[Refit]]) -> list[tuple[Projection, Tensor]]:
    """Give the inputs of each projection in the order in which they are kept longest.

    Args:
        choices: nested, those that keep least first: of each what there is to refit.
    """
    found = []
    for some in zip(*choices, strict=True):
        projection, width = some[0].projection, len(some[0].gate)
        order = list(dict.fromkeys(chain(*(each.kept for each in some), range(width))))
        assert all(set(each.kept) == set(order[: len(each.kept)]) for each in some)
        found.append((projection, torch.tensor(order)))
    return found


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
def seeing(holder: nn.Module, nodes: Collection[str], *, only: bool = False) -> Iterator[dict[str, Tensor]]:
    """See what nodes of a block gave when it ran last, by their names; meanwhile.

    Args:
        only: whether it runs no further than to the last of these.
    """
    found = dict[str, Tensor]()

    def see(node: str) -> object:
        def hook(module: nn.Module, given: object, result: Tensor) -> None:
            found[node] = result
            if only and len(found) == len(nodes):
                raise Enough

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
