"""What calibration batches show of a model's inside: second moments of what goes into projections, and energies.

Letters in shapes: B sequences, N positions, C features, what a projection sums over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from sprunec.data.batches import Batch, in_use
from sprunec.engines.device import Place
from sprunec.rewrite.projections import Projection, projections
from sprunec.rewrite.taps import tap
from sprunec.rewrite.trace import TracedBlock


@dataclass
class Moments:
    """Means over all positions in use.

    Attributes:
        inputs: the projections, by block and tensor name, and the mean of x xᵀ (C, C) of what goes into each, before
            any gate; float32, on the device.
        branches, streams: by block and kind of sublayer, the mean square of what it adds, and of the sum.
    """

    inputs: dict[tuple[int, str], tuple[Projection, Tensor]]
    branches: dict[tuple[int, str], float]
    streams: dict[tuple[int, str], float]

    def of_unit(self, block: int, unit: str) -> list[tuple[Projection, Tensor, tuple[int, int, int]]]:
        """Give the projections that a kind of unit goes into, with how their features are made of it."""
        found = [(projection, moment, projection.units(unit)) for projection, moment in self.inputs.values()]
        return [(p, moment, units) for p, moment, units in found if p.block.index == block and units is not None]

    def share(self, block: int, kind: str) -> float:
        """Tell how much of the energy behind a sublayer is the sublayer's own."""
        return self.branches[(block, kind)] / max(self.streams[(block, kind)], 1e-30)


@torch.no_grad()
def calibrate(model: nn.Module, blocks: Sequence[TracedBlock], batches: Iterable[Batch], place: Place) -> Moments:
    """Run batches through a model whose traced blocks were replaced by gated ones; left in eval mode."""
    model.eval()
    weights: dict[tuple[int, str], Projection] = {}
    sums, handles = _Sums(), []
    for block in blocks:
        holder = model.get_submodule(block.path)
        if isinstance(holder, fx.GraphModule):
            here = {(block.index, projection.tensor): projection for projection in projections(block)}
            weights |= here
            watched = [(p.operand, sums.hook(("input", *key), lambda x: x.T @ x, p.dim)) for key, p in here.items()]
            for residual in block.forward.residuals:
                for kind, node in (("branch", residual.branch), ("stream", residual.add)):
                    name = (kind, block.index, residual.kind)
                    watched.append((node, sums.hook(name, lambda x: x.square().mean(-1).sum())))
            handles += [tap(holder, node).register_forward_hook(hook) for node, hook in watched]
    exact = Place(place.device, torch.float32)
    for batch in (batch.to(place.device) for batch in batches):
        sums.use(in_use(batch.inputs))
        with exact.precision():
            model(**batch.inputs)
    for handle in handles:
        handle.remove()
    return sums.moments(weights)


class _Sums:
    """What hooks add up over the positions in use."""

    def __init__(self) -> None:
        self._sums: dict[Any, Tensor] = {}
        self._used, self._count = torch.empty(0), 0

    def use(self, used: Tensor) -> None:
        """Add up these (B, N) positions of the next batch, a bool mask."""
        self._used = used
        self._count += int(used.sum())

    def hook(self, name: Any, total: Callable[[Tensor], Tensor], dim: int = -1) -> Callable[..., None]:
        """Make a hook that adds up what `total` makes of a module's output; its dim `dim` holds the features."""

        def add(_: nn.Module, given: Any, result: Tensor) -> None:
            value = total(result.movedim(dim, -1)[self._used].flatten(0, -2).float())
            self._sums[name] = self._sums[name] + value if name in self._sums else value

        return add

    def moments(self, weights: dict[tuple[int, str], Projection]) -> Moments:
        inputs = {key: (weight, self._sums[("input", *key)] / self._count) for key, weight in weights.items()}
        branches, streams = (
            {name[1:]: float(total) / self._count for name, total in self._sums.items() if name[0] == kind}
            for kind in ("branch", "stream")
        )
        return Moments(inputs, branches, streams)
