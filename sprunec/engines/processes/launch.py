"""How the processes that train one model together start, and meet; needs no torch to tell that there is but one."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from sprunec.engines.processes.world import World, launched
from sprunec.interrupts import INTERRUPTED

FAILED = 1


def meet() -> World:
    """Meet the other processes that torchrun has started, if it has; use it in a `with` block."""
    if launched()[1] == 1:
        return World()
    from sprunec.engines.processes.distributed import ProcessGroup

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
