"""The processes that train one model together: how they start and meet, and the few numbers that they tell each other.

This is about control: which step fails, who stops, what the loss of a global batch is. Gradients are the engine's.
Needs no torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sprunec.interrupts import INTERRUPTED

if TYPE_CHECKING:
    from torch import Tensor

FAILED = 1


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


def meet() -> World:
    """Meet the other processes that torchrun has started, if it has; use it in a `with` block."""
    if launched()[1] == 1:
        return World()
    from sprunec.engines.distributed import ProcessGroup

    return ProcessGroup()


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `sprunec ARGUMENTS` in so many processes of this machine, as torchrun does; return rank 0's exit code.

    Ctrl-C and SIGTERM reach all of them; what has not ended half a minute later is killed.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    logging.disable(logging.CRITICAL)  # rank 0 has said what went wrong
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    options = ["--standalone", f"--nproc-per-node={processes}", "--monitor-interval=0.2"]
    try:
        torchrun([*options, "-m", "sprunec", *arguments])
    except ChildFailedError as error:
        return exit_code({rank: failure.exitcode for rank, failure in error.failures.items()})
    except (SignalException, KeyboardInterrupt):
        return INTERRUPTED
    return 0


def exit_code(codes: Mapping[int, Any]) -> int:
    """Choose rank 0's, if it ended by itself: whoever fails after it does so because of it."""
    first = int(codes.get(0, FAILED))
    return first if first > 0 else FAILED
