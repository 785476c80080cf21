"""Where tensors live and in which precision they are multiplied."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sprunec.engines.world import World
from sprunec.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Place:
    """A device and a precision; weights and optimizer stay float32, products are taken in `dtype`."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, device: str, precision: str, world: World | None = None) -> Place:
        """Choose the device of this process: `auto` takes CUDA, then MPS, then the CPU.

        Args:
            world: of several processes, where each takes a GPU of its own or all take the CPU.

        Raises:
            InputError: the device is not here, or all processes would share it.
        """
        if world is not None and world.size > 1:
            if device.startswith("cuda:") or device == "mps":
                message = f"device {device} is one, and several processes train"
                hint = 'write "device": "cuda": each process takes its own'
                raise InputError.in_option("/engine/device", message, hint)
            if device != "cpu" and torch.cuda.is_available():
                device = f"cuda:{world.local_rank}"
            elif device == "auto":
                device = "cpu"
        elif device == "auto":
            device = _best()
        found = torch.device(device)
        if not _is_here(found):
            message = f"device {device} is not on this machine"
            raise InputError.in_option("/engine/device", message, 'use "auto" or "cpu"')
        return cls(found, DTYPES[precision])

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            yield

    def memory(self, processes: int) -> float:
        """Return bytes for each of so many processes: of its GPU, or its share of the machine's."""
        if self.device.type == "cuda":
            return float(torch.cuda.get_device_properties(self.device).total_memory)
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / processes

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _is_here(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index is None or device.index < torch.cuda.device_count())
    return device.type != "mps" or torch.backends.mps.is_available()


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
