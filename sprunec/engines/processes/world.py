"""The processes that train one model together, and the few numbers that they tell each other.

This is about control: which step fails, who stops, what the loss of a global batch is. Gradients are the engine's.
Needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from torch import Tensor


class World:
    """The processes of a run: this one, whose sums are its own. `ProcessGroup` is several.

    Collectives (`join`, `total`, `all_reduce`, `broadcast`) are called by all ranks, in the same order.

    Attributes:
        rank: of this process; rank 0 alone reads and writes files, and is watched.
        size: how many there are.
        local_rank: of this process among those of its machine.
    """

    rank, size, local_rank = 0, 1, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Let all others go, at rank 0, whatever has happened."""

    def join(self, device: str, timeout: int) -> None:
        """Open the channel of collectives, once all ranks are ready to.

        Args:
            timeout: seconds until a rank that is waited for in a collective is given up.

        Raises:
            PassError: at rank 0, what another rank has met instead of coming here.
        """

    def total(self, values: Sequence[float]) -> list[float]:
        """Return sums over all ranks, the same on each, in float64."""
        return list(values)

    def all_reduce(self, tensors: Iterable[Tensor]) -> None:
        """Put the sum over all ranks in the place of each tensor."""

    def broadcast(self, document: Any) -> Any:
        """Return rank 0's document on all ranks: what JSON has, and tensors; what others give is ignored."""
        return document

    def announce(self, turn: str) -> None:
        """Tell all others, as rank 0, what all ranks do together next."""

    def blame(self, error: BaseException) -> str | None:
        """Say, at rank 0, what another rank has complained of, or that it is gone, if an error comes of that."""
        return None


def launched() -> tuple[int, int]:
    """Return the rank of this process and how many torchrun has started; 0 and 1 if it has started none."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
