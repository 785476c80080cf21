"""Refit a masked model sublayer by sublayer, each on what those before it give it, which are refitted already.

A sublayer's weights are fitted to what its own dense ones make of these very inputs. Fitted to what the dense model's
stream is there instead, they would have to undo the faults of all sublayers before, which they cannot: that did worse.
One block is in memory at a time, with the hidden states of all batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.data.batches import in_use
from sprunec.masks.calibration import rows_in_use, second_moment
from sprunec.masks.least_squares import refit
from sprunec.models.streamed import Streamed
from sprunec.rewrite.keep import keeps
from sprunec.rewrite.projections import Projection, projections
from sprunec.rewrite.taps import tap
from sprunec.rewrite.trace import TracedBlock
from sprunec.units import Cut, Indices, Key


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


@torch.no_grad()
def refitted(
    stream: Streamed, blocks: Iterable[tuple[TracedBlock, Sequence[Sequence[Refit]]]], ridge: float
) -> Iterator[tuple[str, Tensor]]:
    """Go through a masked model, and give the name and the whole new weight of all that is to be refitted, in order.

    Args:
        stream: batches in front of the model.
        blocks: all of the model's, in order, each with what `refits` says of it.
        ridge: see `least_squares.refit`.
    """
    with stream.entrance():
        stream.hidden = [stream.family.enter(stream.model, batch)[0] for batch in stream.batches]
        for block, sublayers in blocks:
            with stream.holding(block.path, whole=True):
                for sublayer in sublayers:
                    for each, moment in zip(sublayer, _moments(stream, block.path, sublayer), strict=True):
                        yield each.name, _refit(stream.model, each, moment, ridge)
                for number, hidden in enumerate(_outputs(stream, block.path)):
                    stream.hidden[number] = hidden


def _outputs(stream: Streamed, path: str) -> Iterator[Tensor]:
    """Run a block, which must be held, on every batch.

    What it is given besides hidden states is made again each time: position biases are larger than these.
    """
    block = stream.model.get_submodule(path)
    for hidden, batch in zip(stream.hidden, stream.batches, strict=True):
        yield block(hidden, *stream.family.enter(stream.model, batch)[1][path])


def _moments(stream: Streamed, path: str, sublayer: Sequence[Refit]) -> list[Tensor]:
    """Measure the mean of x xᵀ (C, C) over positions in use of what goes into projections, before any gate."""
    holder: Any = stream.model.get_submodule(path)
    seen = dict[int, Tensor]()
    handles = [
        tap(holder, each.projection.operand).register_forward_hook(
            lambda _, __, result, number=number: seen.update({number: result})
        )
        for number, each in enumerate(sublayer)
    ]
    sums, count = [torch.zeros(())] * len(sublayer), 0
    for batch, _ in zip(stream.batches, _outputs(stream, path), strict=True):
        used = in_use(batch)
        count += int(used.sum())
        for number, each in enumerate(sublayer):
            rows = rows_in_use(seen[number], each.projection.dim, used)
            sums[number] = sums[number].to(rows.device) + second_moment(rows)
    for handle in handles:
        handle.remove()
    return [total / count for total in sums]


def _refit(model: nn.Module, each: Refit, moment: Tensor, ridge: float) -> Tensor:
    """Put a new weight in the place of a held one."""
    owner, _, leaf = each.name.rpartition(".")
    held: Any = model.get_submodule(owner)._parameters
    new: Tensor = held[leaf].clone()
    held[leaf] = new
    columns, index = each.projection.columns(new), torch.tensor(each.kept, device=new.device)
    columns[:, index] = refit(moment, columns, index, each.gate, ridge=ridge)
    return new
