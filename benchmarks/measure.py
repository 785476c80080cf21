"""Run a command as a process of its own: how long it took, and its peak of resident memory.

Nothing here imports torch: a child's peak would start at what its parent has.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

BARE = [sys.executable, "-c", "import torch"]
BARE_LIBRARIES = [sys.executable, "-c", "import torch, transformers"]
BETWEEN_LOOKS, GROWN = 0.1, 1.01  # seconds; by how much memory must have grown to be looked at closely


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


def measure_tree(command: Sequence[object], *, quiet: bool = False) -> Measured:
    """Do as `measure`, with the memory of the process and of all that it starts, looked at ten times a second.

    What several of them share is counted once (the kernel's Pss), which takes a while to find: that is done only where
    a sum that counts it for each has grown. What the kernel says of the largest process is taken where it is more.
    """
    started, together, looked = time.perf_counter(), 0, 0.0
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL if quiet else None)
    while (done := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        if (resident := sum(map(_resident, there := list(_tree(process.pid))))) > GROWN * looked:
            together, looked = max(together, sum(map(_proportional, there))), resident
        time.sleep(BETWEEN_LOOKS)
    _, status, usage = done
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = max(together, usage.ru_maxrss * 1024)
    return Measured(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, peak, process.returncode)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):  # it may have ended
        for listed in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in listed.read_text().split():
                yield from _tree(int(child))


def _resident(pid: int) -> int:
    """Give the bytes of a process; 0 of one that has ended."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _proportional(pid: int) -> int:
    """Give the bytes of a process, of pages that it shares its part; 0 of one that has ended."""
    with suppress(OSError):
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        return 1024 * int(found[1]) if found else 0
    return 0


def pages_read(paths: Sequence[Path]) -> None:
    """Bring files into the page cache, so that every way starts from the same."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(2**24):
                pass
