"""The processes that train one model together, and the few numbers that they tell each other.

This is about control: which step fails, who stops, what the loss of a global batch is. Gradients are the engine's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class World(Protocol):
    """The processes of a run; every call but the properties' is made by all of them, in the same order.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
    """

    rank: int
    size: int

    @property
    def lead(self) -> bool:
        """Whether this is the process that reads and writes files, and is watched: rank 0."""

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, the same on each, in float64."""

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Put the sum over all ranks in the place of each tensor."""

    def share(self, document: Any) -> Any:
        """The lead's document on all ranks: what JSON has, and tensors; what others give is ignored."""


class Alone:
    """One process: every sum is its own."""

    rank, size, lead = 0, 1, True

    def total(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """There is nothing to add."""

    def share(self, document: Any) -> Any:
        return document
