"""Refit a masked model sublayer by sublayer, each on what those before it give it, which are refitted already.

A sublayer's weights are fitted to what its own dense ones make of these very inputs. Fitted to what the dense model's
stream is there instead, they would have to undo the faults of all sublayers before, which they cannot: that did worse.
They are rounded to what the model is stored in before anything behind them is fitted.

How strongly they are drawn to the old ones, the ridge, is chosen for each weight by its error on batches that are held
back from the fit; then all are fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sprunec.masks.calibration import Statistic, watching
from sprunec.masks.least_squares import choose_ridge, refit
from sprunec.masks.symmetric import SecondMoment
from sprunec.models.block_by_block import BlockByBlock
from sprunec.models.streamed import Streamed
from sprunec.rewrite.keep import keeps
from sprunec.rewrite.projections import Projection, projections
from sprunec.rewrite.trace import TracedBlock
from sprunec.units import Cut, Indices, Key

Refitted = dict[str, Tensor]


@dataclass(frozen=True)
class Refit:
    """A projection of whose input features not all are left.

    Attributes:
        kept: the features that are.
        gate: (features,), what each one counts in the output that is wanted.
    """

    projection: Projection
    kept: Indices
    gate: Tensor

    @property
    def name(self) -> str:
        """The weight's name in the model."""
        return f"{self.projection.block.path}.{self.projection.tensor}"


def refits(block: TracedBlock, left: Cut, soft: Mapping[Key, Tensor]) -> list[list[Refit]]:
    """List what there is to refit in a block, for each of its sublayers that stays, in order.

    Args:
        left: what the masks leave.
        soft: by layer and unit, gates that have been trained. What is cut counts as much as its own let through.
    """
    found, keep = [], keeps(block, left, "forward")
    kept = [(projection, projection.kept(keep)) for projection in projections(block)]
    for residual in block.forward.residuals:
        if left.has(block.index, residual.kind):
            cut = [(each, some) for each, some in kept if some and each.tensor in residual.tensors]
            found.append([Refit(each, some, _gate(each, some, soft)) for each, some in cut])
    return [sublayer for sublayer in found if sublayer]


def _gate(projection: Projection, kept: Indices, soft: Mapping[Key, Tensor]) -> Tensor:
    gate = torch.ones(projection.weight.size(1))
    for (layer, unit), value in soft.items():
        if layer == projection.block.index and (units := projection.units(unit)) is not None:
            outer, _, inner = units
            gate *= value.view(1, -1, 1).expand(outer, -1, inner).flatten()
    return gate.index_fill(0, torch.tensor(kept), 1.0)


@dataclass
class Inputs:
    """What goes into a projection, batch after batch.

    Attributes:
        seen: how many batches there are before those that the ridge is chosen by.
        moment: of those.
        unseen: rows (n, C) of each of the others.
    """

    seen: int
    moment: SecondMoment
    unseen: list[Tensor] = field(default_factory=list)
    _count: int = 0

    def add(self, rows: Tensor) -> None:
        if self._count < self.seen:
            self.moment.add(rows)
        else:
            self.unseen.append(rows)
        self._count += 1


def _gathered(seen: int) -> Statistic:
    def add(inputs: Inputs | None, rows: Tensor) -> Inputs:
        inputs = Inputs(seen, SecondMoment(rows.size(1), rows.device)) if inputs is None else inputs
        inputs.add(rows)
        return inputs

    return Statistic(add, lambda inputs, count: inputs)


@torch.no_grad()
def refit_block(
    way: BlockByBlock, block: TracedBlock, sublayers: Sequence[Sequence[Refit]], seen: int, ridge: float | None
) -> tuple[Refitted, dict[str, float]]:
    """Refit a masked block, which has its weights, and bring all batches behind it.

    Args:
        sublayers: what `refits` says of the block.
        seen: how many of the way's batches stand before those that a ridge is chosen by.
        ridge: see `least_squares.refit`; None: the one that errs least on the batches behind.

    Returns:
        the whole new weights and the ridges, by name.
    """
    found, ridges, model, statistic = Refitted(), dict[str, float](), way.stream.model, _gathered(seen)
    for sublayer in sublayers:
        watched = {each.name: (each.projection.operand, statistic, each.projection.dim) for each in sublayer}
        with watching(model.get_submodule(block.path), watched, way, only=True) as means:
            way.look(block.path)
            inputs = means()
        for each in sublayer:
            found[each.name], ridges[each.name] = _refit(way.stream, each, inputs.pop(each.name), ridge)
    way.advance(block.path)
    return found, ridges


def _refit(stream: Streamed, each: Refit, inputs: Inputs, ridge: float | None) -> tuple[Tensor, float]:
    """Put a new weight in the place of a held one -> it, as it is stored, and its ridge."""
    owner, _, leaf = each.name.rpartition(".")
    held: Any = stream.model.get_submodule(owner)._parameters
    old: Tensor = held[leaf]
    index, weight = torch.tensor(each.kept, device=old.device), each.projection.columns(old)
    inputs.moment.round()
    if ridge is None:
        ridge = choose_ridge(inputs.moment, inputs.unseen, weight, index, each.gate)
    while inputs.unseen:
        inputs.moment.add(inputs.unseen.pop())
    fitted = refit(inputs.moment, weight, index, each.gate, ridge=ridge)
    new = old.clone()
    each.projection.columns(new)[:, index] = fitted
    stored = new.to(stream.stored_dtype(each.name))
    held[leaf] = stored.to(new)  # what comes behind it sees what is stored
    return stored, ridge
