"""What this machine has; needs no torch."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path


def physical_memory() -> int:
    """Count the machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resident_memory() -> int:
    """Count the bytes that this process has in memory; where the system does not say that, the most it has had."""
    about = Path("/proc/self/statm")
    if about.is_file():
        return int(about.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def processor() -> str:
    """Name the processor."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8", errors="replace").splitlines() if about.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: str) -> str:
    """Name a device, as `cpu: ...`, with what it is."""
    if device.startswith("cuda"):
        import torch

        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"{device}: {processor()}"


def about_machine(device: str) -> dict[str, str | int | None]:
    """Say what a run's times and memory depend on."""
    amounts = {"processors": os.cpu_count(), "memory": physical_memory()}
    return {"device": device_name(device), "system": platform.platform(), **amounts}
