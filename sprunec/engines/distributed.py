"""Several processes that train one model, as torchrun starts them: torch.distributed's World.

Two channels. Collectives (gloo, and NCCL for tensors on CUDA) carry gradients and the numbers of a step. The key-value
store that the processes met at carries whose turn it is, what went wrong, and everybody's heartbeat. Those who wait for
their next turn ask the store, so waiting costs nothing and may last; a collective would run into its timeout.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from sprunec.engines.heartbeat import END, SILENCE, Heartbeat
from sprunec.engines.world import World
from sprunec.errors import PassError

GRACE = 5.0  # seconds that a rank is given to say why it ends
MEETING = timedelta(minutes=10)  # until all processes have started
POLL = 0.05  # seconds between two questions to the store


class ProcessGroup(World):
    """The `WORLD_SIZE` processes that torchrun has started."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
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
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=PrefixStore("collectives", self._store),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=timeout),
        )

    def total(self, values: Sequence[float]) -> list[float]:
        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found)
        totals: list[float] = found.tolist()
        return totals

    def all_reduce(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            dist.all_reduce(tensor)

    def broadcast(self, document: Any) -> Any:
        """Send it as torch saves it, so that tensors stay what they are to the bit, and nothing is unpickled."""
        written = io.BytesIO()
        if self.rank == 0:
            torch.save(document, written)
        size = int(self.total([float(written.getbuffer().nbytes)])[0])
        content = torch.zeros(size, dtype=torch.uint8)
        if self.rank == 0:
            content = torch.frombuffer(written.getbuffer(), dtype=torch.uint8).clone()
        dist.broadcast(content, src=0)
        return torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)

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
        try:
            while time.monotonic() < until:
                for key in keys:
                    if self._store.check([key]):
                        return key
                time.sleep(POLL)
        except RuntimeError:  # nobody keeps the store any more
            return None
        return None


def lost(error: BaseException) -> str | None:
    """Say what an error means that another process causes by being gone or too slow; None of any other error."""
    message = str(error)
    if not isinstance(error, dist.DistError) and not re.search(r"gloo|NCCL|[Cc]onnection|[Tt]imed out", message):
        return None
    # "[/a/gloo/pair.cc:537] Read error: Connection reset by peer. This is typical of ...": what is between says enough
    inner = re.sub(r"^.*\[\S*/\S*\] ", "", message.strip().splitlines()[0]).partition(". ")[0]
    return f"lost touch with another process ({inner}); run again to continue from the last save"
