"""What this machine has; needs no torch."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress


def physical_memory() -> int:
    """Count the machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def release_memory() -> None:
    """Give back to the machine what is no longer used: glibc keeps it otherwise, hundreds of MB after a large model."""
    with suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
