"""The processes that train one model together, and the few numbers that they tell each other.

This is about control: which step fails, who stops, what the loss of a global batch is. Gradients are the engine's.
Needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from sprunec.engines.distributed import ProcessGroup


def launched() -> tuple[int, int]:
    """Return the rank of this process and how many torchrun has started; 0 and 1 if it has started none."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def process_group() -> AbstractContextManager[ProcessGroup | None]:
    """Meet the other processes that torchrun has started, for the time of a block; None where there are none."""
    if launched()[1] == 1:
        return nullcontext()
    from sprunec.engines.distributed import ProcessGroup

    return ProcessGroup()


class World(Protocol):
    """The processes of a run; every method is called by all of them, in the same order.

    Attributes:
        rank: of this process; rank 0 alone reads and writes files, and is watched.
        size: how many there are.
    """

    rank: int
    size: int

    def total(self, values: Sequence[float]) -> list[float]:
        """Return sums over all ranks, the same on each, in float64."""

    def all_reduce(self, tensors: Iterable[Tensor]) -> None:
        """Put the sum over all ranks in the place of each tensor."""

    def broadcast(self, document: Any) -> Any:
        """Return rank 0's document on all ranks: what JSON has, and tensors; what others give is ignored."""


class Alone:
    """One process: every sum is its own."""

    rank, size = 0, 1

    def total(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def all_reduce(self, tensors: Iterable[Tensor]) -> None:
        """Leave them: there is nothing to add."""

    def broadcast(self, document: Any) -> Any:
        return document
