"""Batches on their way through a model and, at once, through what it is without some of its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor

from sprunec.data.batches import Batch
from sprunec.models.block_by_block import BlockByBlock
from sprunec.models.hidden_states import HiddenStates
from sprunec.models.streamed import Streamed

Item = TypeVar("Item")


class WithoutBlocks(BlockByBlock):
    """A way through several models that differ in the blocks which they lack.

    There are as many batches for each as are given: batch b of model m is number b x models + m. Up to the first block
    that models differ in they are one, and run once.

    Args:
        without: of each model, the paths of the blocks that it lacks.
        more, named: as `BlockByBlock` takes it.
    """

    def __init__(
        self,
        stream: Streamed,
        batches: Sequence[Batch],
        hidden: HiddenStates,
        *more: Any,
        without: Sequence[frozenset[str]],
        **named: Any,
    ) -> None:
        stream.batches = _repeated(stream.batches, len(without))
        super().__init__(stream, _repeated(batches, len(without)), hidden, *more, **named)
        self._without = without

    def advance(self, path: str) -> None:
        """Bring the batches of those models behind a block that have it, and read the next one meanwhile."""
        self.read_following()
        behind = frozenset(self.stream.paths[: self.stream.paths.index(path)])
        for first in range(0, len(self.hidden), len(self._without)):
            run = dict[frozenset[str], Tensor]()  # by what has been left out so far
            for number, gone in enumerate(self._without, start=first):
                if path in gone:
                    self.hidden.put(number, self.hidden[number])
                    continue
                if gone & behind not in run:
                    run[gone & behind] = self.output(path, number, self.hidden[number])
                self.hidden.put(number, run[gone & behind])


def _repeated(items: Sequence[Item], times: int) -> list[Item]:
    return [item for item in items for _ in range(times)]
