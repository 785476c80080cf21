"""What a look at the data shows of a model's inside: second moments of what goes into projections, and energies.

Letters in shapes: C columns, what a projection sums over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from sprunec.data.batches import Batch
from sprunec.engines.device import Place
from sprunec.rewrite.projections import Projection, projections
from sprunec.rewrite.taps import tap
from sprunec.rewrite.trace import TracedBlock


@dataclass
class Moments:
    """Means over all columns of text in use.

    Attributes:
        inputs: the projections, by block and tensor name, and the mean of x xᵀ (C, C) of what goes into each, before
            any gate; float32, on the device.
        branches, streams: by block and kind of sublayer, the mean square of what it adds, and of the sum.
    """

    inputs: dict[tuple[int, str], tuple[Projection, Tensor]] = field(default_factory=dict)
    branches: dict[tuple[int, str], float] = field(default_factory=dict)
    streams: dict[tuple[int, str], float] = field(default_factory=dict)

    def of_unit(self, block: int, unit: str) -> list[tuple[Projection, Tensor, tuple[int, int, int]]]:
        """The projections that a kind of unit goes into, with how their columns are made of it."""
        found = [(projection, moment, projection.units(unit)) for projection, moment in self.inputs.values()]
        return [(p, moment, units) for p, moment, units in found if p.block.index == block and units is not None]

    def share(self, block: int, kind: str) -> float:
        """How much of the energy behind a sublayer is the sublayer's own."""
        return self.branches[(block, kind)] / max(self.streams[(block, kind)], 1e-30)


@torch.no_grad()
def look(model: nn.Module, blocks: Sequence[TracedBlock], batches: Iterable[Batch], place: Place) -> Moments:
    """Run batches through a model whose traced blocks were replaced by gated ones; left in eval mode."""
    model.eval()
    moments, totals = Moments(), _Totals()
    seen: dict[str, Tensor] = {}
    handles = _watch(model, blocks, moments, totals, seen)
    exact = Place(place.device, torch.float32)
    for batch in batches:
        batch = batch.to(place.device)
        columns = torch.arange(batch.targets.size(1), device=place.device)
        seen["used"] = columns < batch.inputs["length"][:, None]
        totals.columns += int(seen["used"].sum())
        with exact.precision():
            model(**batch.inputs)
    for handle in handles:
        handle.remove()
    totals.into(moments)
    return moments


@dataclass
class _Totals:
    """Sums over columns."""

    columns: int = 0
    sums: dict[Any, Tensor] = field(default_factory=dict)

    def add(self, name: Any, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def into(self, moments: Moments) -> None:
        for key, (projection, _) in moments.inputs.items():
            moments.inputs[key] = (projection, self.sums[("input", *key)] / self.columns)
        for kind, means in (("branch", moments.branches), ("stream", moments.streams)):
            found = {name[1:]: float(value) for name, value in self.sums.items() if name[0] == kind}
            means |= {key: total / self.columns for key, total in found.items()}


def _watch(
    model: nn.Module, blocks: Sequence[TracedBlock], moments: Moments, totals: _Totals, seen: dict[str, Tensor]
) -> list[Any]:
    """Taps in every block, whose hooks add up; `seen["used"]` is a bool mask (B, N) of the columns in use."""

    def hook(name: Any, sums: Callable[[Tensor], Tensor], dim: int = -1) -> Callable[..., None]:
        def add(_: nn.Module, given: Any, result: Tensor) -> None:
            totals.add(name, sums(result.movedim(dim, -1)[seen["used"]].flatten(0, -2).float()))

        return add

    handles = []
    for block in blocks:
        holder = model.get_submodule(block.path)
        if not isinstance(holder, fx.GraphModule):
            continue
        for projection in projections(block):
            key = (block.index, projection.tensor)
            moments.inputs[key] = (projection, torch.empty(0))
            watched = hook(("input", *key), lambda x: x.T @ x, projection.dim)
            handles.append(tap(holder, projection.operand).register_forward_hook(watched))
        for residual in block.forward.residuals:
            for kind, node in (("branch", residual.branch), ("stream", residual.add)):
                watched = hook((kind, block.index, residual.kind), lambda x: x.square().mean(-1).sum())
                handles.append(tap(holder, node).register_forward_hook(watched))
    return handles
