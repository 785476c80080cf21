"""Where a pass runs: the device, and the precision of products."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sprunec.engines.processes.world import World
from sprunec.errors import InputError
from sprunec.machine import physical_memory, resident_memory

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
        several = world if world is not None and world.size > 1 else None
        if several and (device.startswith("cuda:") or device == "mps"):
            message = f"device {device} is one, and several processes train"
            hint = 'write "device": "cuda": each process takes its own'
            raise InputError.in_option("/engine/device", message, hint)
        if device == "auto":
            device = _best()
            device = "cpu" if several and device == "mps" else device
        cuda, count = torch.cuda.is_available(), torch.cuda.device_count()
        if several and device == "cuda" and cuda:
            device = f"cuda:{several.local_rank}"
        found = torch.device(device)
        here = {"cuda": cuda and (found.index is None or found.index < count), "mps": torch.backends.mps.is_available()}
        if not here.get(found.type, True):
            message = f"device {device} is not on this machine"
            raise InputError.in_option("/engine/device", message, 'use "auto" or "cpu"')
        return cls(found, DTYPES[precision])

    @property
    def exact(self) -> Place:
        """The same device, products in float32."""
        return replace(self, dtype=torch.float32)

    def precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def memory(self, processes: int) -> float:
        """Return bytes for each of so many processes: of its GPU, or its share of the machine's."""
        if self.device.type == "cuda":
            return float(torch.cuda.get_device_properties(self.device).total_memory)
        return physical_memory() / processes

    def memory_in_use(self) -> int:
        """Count the bytes that this process holds: of its GPU, or of the machine's."""
        return torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else resident_memory()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
