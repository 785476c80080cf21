"""Scores of whole blocks, by what they do to hidden states or by the loss without them; the higher, the more to keep.

Letters in shapes: n positions in use, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprunec.data.batches import Batch, grouped, in_use
from sprunec.engines.device import Place
from sprunec.models.block_by_block import BlockByBlock
from sprunec.models.held_out import cross_entropies
from sprunec.plan.scale import DIRECTIONS, TOGETHER
from sprunec.units import Key

Way = Callable[..., BlockByBlock]


@dataclass(frozen=True)
class Depth:
    """What criteria of whole blocks are given.

    Attributes:
        blocks: by path, in order, the numbers of those that are there.
        width: of hidden states.
        dropped: how many of them the target takes away.
        batches: of few rows each.
        way: puts batches in front of the model; or, by a second argument, in front of what it is without some blocks,
            see `WithoutBlocks`.
        saved: what the way has found that was being gone when the pass was killed; None: it was not.
    """

    blocks: Mapping[str, int]
    width: int
    dropped: int
    batches: Sequence[Batch]
    way: Way
    place: Place
    saved: Any = None

    def scores(self, by_path: Mapping[str, float]) -> dict[Key, Tensor]:
        return {(index, "block"): torch.tensor([by_path[path]]) for path, index in self.blocks.items()}


def block_influence(given: Depth) -> dict[Key, Tensor]:
    """Score by 1 - the mean cosine of what goes into a block and what comes out (Men et al. 2024, ShortGPT, eq. 1)."""
    way, found = given.way(given.batches), dict[str, float]()

    def restore(saved: dict[str, float]) -> bool:
        found.update(saved)
        return True

    for path in way.blocks(lambda: dict(found), restore):
        cosines = list[Tensor]()
        with _seeing(way, path, lambda *pair, to=cosines: to.append(torch.cosine_similarity(*pair))):
            way.advance(path)
        if path in given.blocks:
            found[path] = 1.0 - float(torch.cat(cosines).mean())
    return given.scores(found)


@contextmanager
def _seeing(way: BlockByBlock, path: str, see: Callable[..., None]) -> Iterator[None]:
    """Show what goes into a block and what comes out, both (n, D) in float64, of every batch that goes through it."""

    def show(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        used = in_use(way.current)
        see(inputs[0][used].double(), output[used].double())

    handle = way.stream.model.get_submodule(path).register_forward_hook(show)
    try:
        yield
    finally:
        handle.remove()


def angular_distance(given: Depth) -> dict[Key, Tensor]:
    """Score by the angle between what goes into a stretch of blocks and what comes out, over pi (Gromov et al. 2024).

    A stretch is as long as the target takes away, and a block has the score of the best stretch that it is in: so the
    best one goes, and nothing else. Angles are those of positions in use, evenly chosen where there are many.
    """
    way, entrances = given.way(given.batches), list[Tensor]()

    def restore(saved: list[Tensor]) -> bool:
        entrances.extend(saved)
        return True

    for path in way.blocks(lambda: list(entrances), restore):
        if path in given.blocks:
            entrances.append(_directions(way, given))
        way.advance(path)
    entrances.append(_directions(way, given))
    long, scores = given.dropped, dict.fromkeys(given.blocks, math.inf)
    for first, (before, behind) in enumerate(zip(entrances, entrances[long:], strict=False)):
        cosines = (before.double() * behind).sum(1).clamp(-1, 1)
        distance = float(cosines.arccos().mean()) / math.pi
        for path in list(given.blocks)[first : first + long]:
            scores[path] = min(scores[path], distance)
    return given.scores(scores)


def _directions(way: BlockByBlock, given: Depth) -> Tensor:
    """Take the states (n, D) in front of a block, of length 1; no more numbers than `DIRECTIONS`."""
    used = [in_use(batch.inputs) for batch in given.batches]
    every = max(1, math.ceil(sum(int(each.sum()) for each in used) * given.width / DIRECTIONS))
    states = (each[places.to(each.device)][::every].cpu() for each, places in zip(way.hidden, used, strict=True))
    return F.normalize(torch.cat(list(states)).double(), dim=1).float()


def removal_loss(given: Depth) -> dict[Key, Tensor]:
    """Score by the loss, in nats a target, without the block alone."""
    return given.scores(next(_rounds(given))[1])


def iterative_removal(given: Depth) -> dict[Key, Tensor]:
    """Score by the order in which blocks go whose removal costs least: one at a time, and then all are measured again.

    As SLEB does (Song et al. 2024). The others have the loss without them, as it was last.
    """
    gone, losses = next(each for each in _rounds(given) if len(each[0]) + 1 >= given.dropped)
    best = min(losses, key=lambda path: losses[path])
    order = [*gone, best]
    return given.scores(losses | {path: float(place - len(order)) for place, path in enumerate(order)})


def _rounds(given: Depth) -> Iterator[tuple[list[str], dict[str, float]]]:
    """Give the blocks that are gone, and the loss without these and each of the others; the best one goes then."""
    gone, done, sums = given.saved or ((), 0, ())
    targets = sum(batch.target_count for batch in given.batches)
    while left := [path for path in given.blocks if path not in gone]:
        without = [frozenset((*gone, path)) for path in left]
        sums = sums or (0.0,) * len(left)
        together = grouped(given.batches, lambda batch: batch.targets.numel(), TOGETHER // (given.width * len(left)))
        for batches in islice(together, done, None):
            found = cross_entropies(given.way(batches, without), given.place.exact, (gone, done, sums))
            sums = tuple(sums[each] + math.fsum(found[each :: len(left)]) for each in range(len(left)))
            done += 1
        losses = {path: total / targets for path, total in zip(left, sums, strict=True)}
        yield list(gone), losses
        gone, done, sums = (*gone, min(losses, key=lambda path: losses[path])), 0, ()
