"""What calibration batches show of a block's inside: squares or products of what goes into projections, energies.

Letters in shapes: B sequences, N positions, n positions in use, C features, what a projection sums over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from sprunec.data.batches import in_use
from sprunec.masks.symmetric import add_second_moment, mirror
from sprunec.models.block_by_block import BlockByBlock, Enough
from sprunec.rewrite.projections import Projection, projections
from sprunec.rewrite.taps import tap
from sprunec.rewrite.trace import TracedBlock
from sprunec.units import Key

PARTS = ("branch", "stream")


@dataclass(frozen=True)
class Statistic:
    """What is added up over rows.

    Attributes:
        add: (what there is so far, rows (n, C)) -> the new sum, in the same memory.
        mean: (the sum, of how many rows) -> the mean, in the same memory.
    """

    add: Callable[[Any, Tensor], Any]
    mean: Callable[[Any, int], Any] = Tensor.div_


Watched = dict[Any, tuple[str, Statistic, int]]


@dataclass(frozen=True)
class BlockStatistics:
    """Means over all positions in use.

    Attributes:
        sizes: how many units there are of each kind.
        inputs: for each projection that units go into: itself, its weight (outputs, C), and of what goes into it,
            before any gate, the mean of x² (C,) or of x xᵀ (C, C); float32, on the device.
        branches, streams: by kind of sublayer, the mean square of what it adds, and of the sum.
    """

    block: TracedBlock
    sizes: Mapping[str, int]
    inputs: list[tuple[Projection, Tensor, Tensor]]
    branches: Mapping[str, float]
    streams: Mapping[str, float]


def score_blocks(
    way: BlockByBlock,
    blocks: Collection[TracedBlock],
    sizes: Mapping[Key, int],
    statistic: Statistic,
    score: Callable[[BlockStatistics], Mapping[Key, Tensor]],
) -> dict[Key, Tensor]:
    """Go through a model whose traced blocks were replaced by gated ones, and score their units.

    Args:
        sizes: how many units there are, by block and kind.
        statistic: what the criterion looks at.
    """
    found, by_path = dict[Key, Tensor](), {block.path: block for block in blocks}

    def restore(saved: dict[Key, Tensor]) -> bool:
        found.update(saved)
        return True

    for path in way.blocks(lambda: dict(found), restore):
        block = by_path[path]
        here = {unit: size for (index, unit), size in sizes.items() if index == block.index}
        if here:
            found.update(score(block_statistics(way, block, here, statistic)))
        else:
            way.advance(path)
    return found


def block_statistics(
    way: BlockByBlock, block: TracedBlock, sizes: Mapping[str, int], statistic: Statistic
) -> BlockStatistics:
    """Bring all batches behind a block, and look at its inside meanwhile."""
    model = way.stream.model
    inputs = [each for each in projections(block) if any(each.units(unit) for unit in sizes)]
    watched: Watched = {each.tensor: (each.operand, statistic, each.dim) for each in inputs}
    for residual in block.forward.residuals:
        for part, node in zip(PARTS, (residual.branch, residual.add), strict=True):
            watched[(part, residual.kind)] = node, ENERGY, -1
    with watching(model.get_submodule(block.path), watched, way) as means:
        way.advance(block.path)
    found = means()
    parts = [(each, each.columns(held_weight(model, block, each)), found[each.tensor]) for each in inputs]
    energies = ({key[1]: float(value) for key, value in found.items() if key[0] == part} for part in PARTS)
    return BlockStatistics(block, sizes, parts, *energies)


def held_weight(model: nn.Module, block: TracedBlock, projection: Projection) -> Tensor:
    """Find a projection's weight in a block that has its weights now."""
    owner, _, leaf = f"{block.path}.{projection.tensor}".rpartition(".")
    parameters: Any = model.get_submodule(owner)._parameters
    weight: Tensor = parameters[leaf]
    return weight


@contextmanager
def watching(
    holder: nn.Module, watched: Watched, way: BlockByBlock, *, only: bool = False
) -> Iterator[Callable[[], dict[Any, Any]]]:
    """Add up, while all batches go through a block, what its nodes give at the positions in use -> what says the means.

    It can say them once: the sums, which may be large, become the means, and belong to who has asked.

    Args:
        watched: by a name, a node, what is added up of it, and the dim that holds its features.
        only: whether a batch goes no further through the block than to the last of these.
    """
    sums, seen = dict[Any, Any](), set[Any]()

    def see(name: Any, statistic: Statistic, dim: int, module: nn.Module, given: Any, result: Tensor) -> None:
        sums[name] = statistic.add(sums.get(name), rows_in_use(result, dim, in_use(way.current)))
        seen.add(name)
        if only and len(seen) == len(watched):
            seen.clear()
            raise Enough

    assert isinstance(holder, fx.GraphModule)
    handles = [
        tap(holder, node).register_forward_hook(partial(see, name, statistic, dim))
        for name, (node, statistic, dim) in watched.items()
    ]

    def means() -> dict[Any, Any]:
        return {name: watched[name][1].mean(sums.pop(name), count) for name in list(sums)}

    try:
        count = sum(int(in_use(batch).sum()) for batch in way.stream.batches)
        yield means
    finally:
        for handle in handles:
            handle.remove()


def rows_in_use(result: Tensor, dim: int, used: Tensor) -> Tensor:
    """Take what a block computes at the positions in use (B, N), with its features from `dim`: (n, C), float32."""
    # some blocks put positions of all rows together: (B, N, ...) or (B·N, ...)
    rows = result.movedim(dim, -1).reshape(used.numel(), -1, result.size(dim))
    return rows[used.flatten()].flatten(0, 1).float()


def _add_squares(total: Tensor | None, rows: Tensor) -> Tensor:
    found = rows.square().sum(0)
    return found if total is None else total.add_(found)


def _add_products(total: Tensor | None, rows: Tensor) -> Tensor:
    total = rows.new_zeros(rows.size(1), rows.size(1)) if total is None else total
    add_second_moment(total, rows)
    return total


def _mean_product(total: Tensor, count: int) -> Tensor:
    mirror(total)
    return total.div_(count)


def _add_energy(total: Tensor | None, rows: Tensor) -> Tensor:
    found = rows.square().mean(-1).sum()
    return found if total is None else total.add_(found)


SQUARES, PRODUCTS, ENERGY = Statistic(_add_squares), Statistic(_add_products, _mean_product), Statistic(_add_energy)
STATISTICS: Mapping[str, Statistic] = {"squares": SQUARES, "products": PRODUCTS}  # x² (C,); x xᵀ (C, C)
