"""Several processes that train one model, as torchrun starts them: torch.distributed's World.

Two channels. Collectives (gloo, and NCCL for tensors on CUDA) carry gradients and the numbers of a step. The key-value
store that the processes met at carries whose turn it is, what went wrong, and everybody's heartbeat. Those who wait for
their next turn ask the store, so waiting costs nothing and may last; a collective would run into its timeout.

What is blocked in a collective cannot help itself: gloo sees that a peer has closed its connection, but not that it has
stopped, and NCCL may see neither. So a thread of every rank looks after the others, and ends the process.
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from sprunec.engines.processes.world import World, launched
from sprunec.errors import PassError

GRACE = 5.0  # seconds that a rank is given to say why it ends
MEETING = timedelta(minutes=10)  # until all processes have started
POLL = 0.05  # seconds between two questions to the store
BEAT, SILENCE = 1.0, 30.0  # seconds from one heartbeat to the next, and without one until a rank is given up
LINGER = 15.0  # seconds that a process may go on after rank 0 has let it go
END = "end"


class ProcessGroup(World):
    """The `WORLD_SIZE` processes that torchrun has started."""

    def __init__(self) -> None:
        self.rank, self.size = launched()
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self._store: Any = next(iter(rendezvous("env://", timeout=MEETING)))[0]
        self._turns = 0
        self._heartbeat = Heartbeat(self.rank, self.size)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._heartbeat.close()
        if self.rank == 0:
            with suppress(RuntimeError):
                self._store.set(END, "")
        if kind is None and dist.is_initialized():  # else somebody may hang in a collective, and closing would, too
            dist.destroy_process_group()

    # --- collectives ---

    def join(self, device: str, timeout: int) -> None:
        self._store.set(f"ready/{self.rank}", "")
        while self.rank == 0 and not self._store.check([f"ready/{rank}" for rank in range(self.size)]):
            if (fault := self.fault(POLL)) is not None:
                raise PassError(fault)
        cuda = torch.device(device).type == "cuda"
        if cuda:
            torch.cuda.set_device(torch.device(device))
        backend, store = "cpu:gloo,cuda:nccl" if cuda else "gloo", PrefixStore("collectives", self._store)
        limit = timedelta(seconds=timeout)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=limit)

    def total(self, values: Sequence[float]) -> list[float]:
        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found)
        return list(found.tolist())

    def all_reduce(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            dist.all_reduce(tensor)

    def broadcast(self, document: Any) -> Any:
        """Send it as torch saves it, so that tensors stay what they are to the bit, and nothing is unpickled."""
        written = io.BytesIO()
        if self.rank == 0:
            torch.save(document, written)
        size = int(self.total([float(written.getbuffer().nbytes)])[0])
        content = bytearray(written.getvalue()) or bytearray(size)
        dist.broadcast(torch.frombuffer(content, dtype=torch.uint8), src=0)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    # --- whose turn it is ---

    def announce(self, turn: str) -> None:
        self._store.set(f"turn/{self._turns}", turn)
        self._turns += 1

    def next_turn(self, stopped: Callable[[], bool]) -> str | None:
        """Wait until rank 0 announces something; None: it has ended, or is gone.

        Args:
            stopped: whether this process was told to end; a rank 0 that is alive says so itself.
        """
        key, asked = f"turn/{self._turns}", None
        try:
            while not self._store.check([key]):
                asked = asked or (time.monotonic() if stopped() else None)
                if self._store.check([END]) or (asked is not None and time.monotonic() - asked > SILENCE):
                    return None
                time.sleep(POLL)
            self._turns += 1
            return str(self._store.get(key).decode())
        except RuntimeError:  # the store has gone with the process that kept it
            return None

    # --- what went wrong ---

    def complain(self, message: str) -> None:
        """Leave a message for rank 0, which tells the user."""
        self._store.set(f"fault/{self.rank}", message)

    def blame(self, error: BaseException) -> str | None:
        gone = lost(error)
        return gone and (self.fault() or gone)

    def fault(self, patience: float = GRACE) -> str | None:
        """Return what another rank has complained of, waiting a moment for it."""
        found = self._first_of([f"fault/{rank}" for rank in range(self.size) if rank != self.rank], patience)
        return f"rank {found.partition('/')[2]}: {self._store.get(found).decode()}" if found else None

    def is_over(self) -> bool:
        """Say whether rank 0 has let everybody go, waiting a moment for it."""
        return self._first_of([END], GRACE) is not None

    def _first_of(self, keys: Sequence[str], patience: float) -> str | None:
        """Return the first of the keys to be in the store; None if none of them is after so many seconds."""
        until = time.monotonic() + patience
        with suppress(RuntimeError):  # nobody keeps the store any more
            while time.monotonic() < until:
                for key in keys:
                    if self._store.check([key]):
                        return key
                time.sleep(POLL)
        return None


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
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Beat no more; a thread that is inside of the store when Python ends would abort the process."""
        self._closed.set()
        self._thread.join(BEAT)

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


def lost(error: BaseException) -> str | None:
    """Say what an error means that another process causes by being gone or too slow; None of any other error."""
    message = str(error)
    if not isinstance(error, dist.DistError) and not re.search(r"gloo|NCCL|[Cc]onnection|[Tt]imed out", message):
        return None
    # "[/a/gloo/pair.cc:537] Read error: Connection reset by peer. This is typical of ...": what is between says enough
    inner = re.sub(r"^.*\[\S*/\S*\] ", "", message.strip().splitlines()[0]).partition(". ")[0]
    return f"lost touch with another process ({inner}); run again to continue from the last save"
