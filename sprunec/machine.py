"""What this machine has; needs no torch."""

from __future__ import annotations

import os


def physical_memory() -> int:
    """Count the machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
