"""The held-out loss of a model of any size: block by block, and then some rows of the head after the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sprunec.data.batches import IGNORED, Batch, grouped
from sprunec.engines.device import Place
from sprunec.families.base_config import ModelConfig
from sprunec.models.block_by_block import BlockByBlock
from sprunec.plan.scale import LOGITS, TOGETHER


def groups_of(batches: Iterable[Batch], config: ModelConfig) -> Iterator[list[Batch]]:
    """Group batches by what goes through the model together.

    To read a model again is nothing beside what so many positions take.
    """
    return grouped(batches, lambda batch: batch.targets.numel() * config.width, TOGETHER)


def cross_entropy_sum(way: BlockByBlock, place: Place, before: Any) -> float:
    """Sum the cross entropy in nats over all targets; `before` is as `cross_entropies` takes it."""
    return sum(cross_entropies(way, place, before))


@torch.no_grad()
def cross_entropies(way: BlockByBlock, place: Place, before: Any) -> list[float]:
    """Give the cross entropy in nats of each batch, summed over its targets.

    Args:
        before: what has been found before these batches; only where that is the same they are gone on with.
    """
    asked = [batch.targets != IGNORED for batch in way.batches]
    losses = [_Loss(batch.targets[used].to(place.device)) for batch, used in zip(way.batches, asked, strict=True)]
    for number, tokens, logits in logits_in_parts(way, place, asked, before):
        losses[number].add(logits, tokens)
    return [float(loss.sum()) for loss in losses]


@torch.no_grad()
def logits_in_parts(
    way: BlockByBlock, place: Place, asked: Sequence[Tensor], before: Any
) -> Iterator[tuple[int, range, Tensor]]:
    """Bring batches through the model; give (number of the batch, tokens, its logits (n, tokens) in float32).

    All batches' for some rows of the head, then all for the next ones.

    Args:
        asked: of each batch, at which of its positions (B, N).
        before: see `cross_entropies`.
    """
    with place.precision():
        for path in way.blocks(lambda: before, lambda saved: saved == before):
            way.advance(path)
        step = max(1, LOGITS // max((int(used.sum()) for used in asked), default=1))
        for first in range(0, way.stream.tokens, step):
            tokens = range(first, min(first + step, way.stream.tokens))
            with way.stream.exit(tokens) as logits:
                for number, (states, used) in enumerate(zip(way.hidden, asked, strict=True)):
                    yield number, tokens, logits(states[used.to(states.device)]).float()


class _Loss:
    """Cross entropies (n,) whose logits come some tokens after the others; softmax's sum as it grows (Milakov 2018)."""

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets
        self._largest = torch.full(targets.shape, -torch.inf, device=targets.device)
        self._sum, self._wanted = (torch.zeros(targets.shape, device=targets.device) for _ in range(2))

    def add(self, logits: Tensor, tokens: range) -> None:
        """Take logits (n, tokens)."""
        largest = torch.maximum(self._largest, logits.amax(1))
        self._sum = self._sum * (self._largest - largest).exp() + (logits - largest[:, None]).exp().sum(1)
        self._largest = largest
        here = (self.targets >= tokens.start) & (self.targets < tokens.stop)
        column = torch.where(here, self.targets - tokens.start, 0)
        self._wanted = torch.where(here, logits.gather(1, column[:, None])[:, 0], self._wanted)

    def sum(self) -> Tensor:
        return (self._sum.log() + self._largest - self._wanted).double().sum()
