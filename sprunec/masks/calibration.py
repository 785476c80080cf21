"""What calibration batches show of a model's inside: second moments of what goes into projections, and energies.

Letters in shapes: B sequences, N positions, n positions in use, C features, what a projection sums over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from sprunec.data.batches import Batch, in_use
from sprunec.engines.device import Place
from sprunec.rewrite.projections import Projection, projections
from sprunec.rewrite.taps import tap
from sprunec.rewrite.trace import TracedBlock
from sprunec.units import Key

Total = Callable[[Tensor], Tensor]
PARTS = ("branch", "stream")


@dataclass
class Moments:
    """Means over all positions in use.

    Attributes:
        inputs: by block and tensor name, a projection that units go into and the mean of x xᵀ (C, C) of what goes into
            it, before any gate; float32, on the device.
        branches, streams: by block and kind of sublayer, the mean square of what it adds, and of the sum.
    """

    inputs: dict[Key, tuple[Projection, Tensor]]
    branches: dict[Key, float]
    streams: dict[Key, float]


class _Seen(Exception):  # noqa: N818
    """Ends a run behind the last block: nothing is measured of the logits, which are large."""


def _end(*_: Any) -> None:
    raise _Seen


@torch.no_grad()
def calibrate(
    model: nn.Module, blocks: Sequence[TracedBlock], units: Collection[str], batches: Iterable[Batch], place: Place
) -> Moments:
    """Run batches through a model whose traced blocks were replaced by gated ones; left in eval mode."""
    model.eval()
    weights: dict[Key, Projection] = {}
    sums: dict[Any, Tensor] = {}
    used, count, handles = torch.empty(0), 0, []  # (B, N), the positions of a batch that are in use

    def add(name: Any, total: Total, dim: int, module: nn.Module, given: Any, result: Tensor) -> None:
        value = total(rows_in_use(result, dim, used))
        sums[name] = sums[name] + value if name in sums else value

    for block in blocks:
        if isinstance(holder := model.get_submodule(block.path), fx.GraphModule):
            found = [each for each in projections(block) if any(each.units(unit) for unit in units)]
            here = {(block.index, projection.tensor): projection for projection in found}
            weights |= here
            for node, *what in _watched(block, here):
                handles.append(tap(holder, node).register_forward_hook(partial(add, *what)))
    handles.append(model.get_submodule(blocks[-1].path).register_forward_hook(_end))
    for batch in (batch.to(place.device) for batch in batches):
        used = in_use(batch.inputs)
        count += int(used.sum())
        with Place(place.device, torch.float32).precision(), suppress(_Seen):
            model(**batch.inputs)
    for handle in handles:
        handle.remove()
    energies = {name: float(total) / count for name, total in sums.items() if name not in weights}
    branches, streams = ({name[1:]: e for name, e in energies.items() if name[0] == part} for part in PARTS)
    return Moments({key: (weight, sums[key] / count) for key, weight in weights.items()}, branches, streams)


def rows_in_use(result: Tensor, dim: int, used: Tensor) -> Tensor:
    """Take what a block computes at the positions in use (B, N), with its features from `dim`: (n, C), float32."""
    # some blocks put positions of all rows together: (B, N, ...) or (B·N, ...)
    rows = result.movedim(dim, -1).reshape(used.numel(), -1, result.size(dim))
    return rows[used.flatten()].flatten(0, 1).float()


def second_moment(rows: Tensor) -> Tensor:
    """Sum x xᵀ over rows (n, C)."""
    return rows.T @ rows


def _watched(block: TracedBlock, weights: Mapping[Key, Projection]) -> Iterator[tuple[str, Any, Total, int]]:
    """Name the nodes to watch, what is added up of each under which name, and the dim that holds their features."""
    for key, projection in weights.items():
        yield projection.operand, key, second_moment, projection.dim
    for residual in block.forward.residuals:
        for part, node in zip(PARTS, (residual.branch, residual.add), strict=True):
            yield node, (part, block.index, residual.kind), lambda x: x.square().mean(-1).sum(), -1
