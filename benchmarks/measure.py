"""Run a command as a process of its own: how long it took, and its peak of resident memory.

Nothing here imports torch: a child's peak would start at what its parent has.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BARE = [sys.executable, "-c", "import torch"]


@dataclass(frozen=True)
class Measured:
    """seconds, those of the processor, and bytes of memory."""

    seconds: float
    cpu: float
    peak: int
    code: int


def measure(command: Sequence[object], cwd: Path | None = None) -> Measured:
    """Its output goes where this process's goes."""
    started = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], cwd=cwd)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Measured(
        time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, process.returncode
    )


def pages_read(paths: Sequence[Path]) -> None:
    """Bring files into the page cache, so that every way starts from the same."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(2**24):
                pass
