"""Heartbeats of processes that train together, so that none waits for one that is gone.

What is blocked in a collective cannot help itself: gloo sees that a peer has closed its connection, but not that it has
stopped, and NCCL may see neither. So a thread of every rank looks after the others, and ends the process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import timedelta

from torch._C._distributed_c10d import TCPStore

BEAT, SILENCE = 1.0, 30.0  # seconds from one heartbeat to the next, and without one until a rank is given up
LINGER = 15.0  # seconds that a process may go on after rank 0 has let it go
END = "end"


class Heartbeat:
    """One rank's thread, over a connection of its own to the store that all met at."""

    def __init__(self, rank: int, size: int) -> None:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=SILENCE))
        self._rank = rank
        self._others = [other for other in range(size) if other != rank]
        self._heard: dict[int, tuple[int, float]] = {}  # by rank its last beat, and when; machines may start late
        self._ended: float | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(BEAT):
            try:
                problem = self._beat(time.monotonic())
            except RuntimeError:
                problem = "the process that keeps the store is gone"
            if problem is not None and not self._closed.is_set():
                if problem:
                    print(f"error: rank {self._rank}: {problem}; run again to continue", file=sys.stderr, flush=True)
                os._exit(1)

    def _beat(self, now: float) -> str | None:
        """Beat, and say why this process should end, if it should; an empty message where the user has been told."""
        self._store.add(f"heartbeat/{self._rank}", 1)
        for rank in self._others:
            count = self._store.add(f"heartbeat/{rank}", 0)
            if count and count != self._heard.get(rank, (0, now))[0]:
                self._heard[rank] = count, now
        if self._store.check([END]):
            self._ended = self._ended or now
            return "" if now - self._ended > LINGER else None
        silent = [rank for rank, (_, when) in self._heard.items() if now - when > SILENCE]
        return f"rank {silent[0]} has sent no heartbeat for {SILENCE:.0f} seconds" if silent else None
