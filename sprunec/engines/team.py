"""Several processes that train one model, as torchrun starts them: torch.distributed's World.

Two channels. Collectives (gloo, and NCCL for tensors on CUDA) carry gradients and the numbers of a step; the store that
the processes met at carries the lead's orders to those who wait for their next pass, and everybody's pulse (see
`pulse`). So waiting costs nothing and may last.
"""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from sprunec.engines.heartbeat import END, SILENCE, Pulse
from sprunec.errors import InputError

GRACE = 5.0  # seconds that a rank is given to say why it ends
MEETING = timedelta(minutes=10)  # until all processes have started


class Team:
    """See `World`; of `WORLD_SIZE` processes."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self._store: Any = next(iter(rendezvous("env://", timeout=MEETING)))[0]
        self._orders = 0
        self._pulse: Pulse | None = None

    @property
    def lead(self) -> bool:
        return self.rank == 0

    # --- collectives ---

    def join(self, device: str, patience: int) -> None:
        """Open the channel of collectives; the pulse begins.

        Args:
            patience: seconds until a rank that is waited for in one is given up.
        """
        cuda = torch.device(device).type == "cuda"
        if cuda:
            torch.cuda.set_device(torch.device(device))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=PrefixStore("collectives", self._store),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=patience),
        )
        self._pulse = Pulse(self.rank, self.size)

    def total(self, values: Sequence[float]) -> list[float]:
        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found)
        totals: list[float] = found.tolist()
        return totals

    def add(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            dist.all_reduce(tensor)

    def share(self, document: Any) -> Any:
        written = io.BytesIO()
        if self.lead:
            torch.save(document, written)
        size = int(self.total([float(written.getbuffer().nbytes)])[0])
        content = torch.zeros(size, dtype=torch.uint8)
        if self.lead:
            content = torch.frombuffer(written.getbuffer(), dtype=torch.uint8).clone()
        dist.broadcast(content, src=0)
        return torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)

    # --- orders ---

    def order(self, document: dict[str, Any]) -> None:
        """The lead tells all others what to do next."""
        self._store.set(f"order/{self._orders}", json.dumps(document))
        self._orders += 1

    def next_order(self, stopped: Callable[[], bool]) -> dict[str, Any] | None:
        """Wait for the lead's next order; None: there is none to come.

        Args:
            stopped: whether this process was told to end; a lead that is alive says so itself.
        """
        key, told = f"order/{self._orders}", None
        try:
            while not self._store.check([key]):
                told = told or (time.monotonic() if stopped() else None)
                if self._store.check([END]) or (told is not None and time.monotonic() - told > SILENCE):
                    return None
                time.sleep(0.05)
            self._orders += 1
            found: dict[str, Any] = json.loads(self._store.get(key))
        except RuntimeError:  # the store has gone with the process that kept it
            return None
        return found

    def end(self) -> None:
        """The lead lets all others go, if they are there."""
        self.leave()
        with suppress(RuntimeError):
            self._store.set(END, "")

    def leave(self) -> None:
        """Show no more signs of life."""
        if self._pulse is not None:
            self._pulse.close()

    def close(self) -> None:
        """Close the channel of collectives; only where nobody hangs in one."""
        if dist.is_initialized():
            dist.destroy_process_group()

    # --- what went wrong ---

    def complain(self, words: str) -> None:
        """Leave a message for the lead, who tells the user."""
        self._store.set(f"fault/{self.rank}", words)

    def fault(self) -> str | None:
        """What another rank has complained of, with a moment's patience."""
        found = self._appears([f"fault/{rank}" for rank in range(self.size) if rank != self.rank])
        return f"rank {found.partition('/')[2]}: {self._store.get(found).decode()}" if found else None

    def is_over(self) -> bool:
        """Whether the lead has let everybody go, with a moment's patience."""
        return self._appears([END]) is not None

    def _appears(self, keys: Sequence[str]) -> str | None:
        """The first of the keys to be there."""
        until = time.monotonic() + GRACE
        try:
            while time.monotonic() < until:
                for key in keys:
                    if self._store.check([key]):
                        return key
                time.sleep(0.1)
        except RuntimeError:  # nobody keeps the store any more
            return None
        return None


def lost(error: BaseException) -> str | None:
    """What to say of an error that another process is the cause of, by being gone or too slow; None of any other."""
    words = str(error)
    if not isinstance(error, dist.DistError) and not re.search(r"gloo|NCCL|[Cc]onnection|[Tt]imed out", words):
        return None
    inner = re.sub(r"^.*\[\S*/\S*\] ", "", words.strip().splitlines()[0]).partition(". ")[0]
    return f"lost touch with another process ({inner}); run again to continue from the last save"


def here(device: str, local_rank: int) -> str:
    """The device of this rank, of those of its machine.

    Raises:
        InputError: the plan names one that all ranks would share.
    """
    if device.startswith("cuda:") or device == "mps":
        message = f"device {device} is one, and several processes train"
        raise InputError.in_option("/engine/device", message, 'write "device": "cuda": each process takes its own')
    if device == "cpu" or not torch.cuda.is_available():
        return device if device != "auto" else "cpu"
    return f"cuda:{local_rank}"
