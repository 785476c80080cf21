"""One run at a time in one OUT: a lock that ends with the process that holds it, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sprunec.durable import naming
from sprunec.errors import InputError, PassError


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold OUT for the time of a run.

    Raises:
        PassError: another run holds it; says which process.
        InputError: OUT cannot be made, written to or locked.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / ".lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    except OSError as error:
        raise InputError.of_disk(out, error, "cannot be written to", code="unwritable") from error
    try:
        with suppress(ImportError):  # not a POSIX system: nothing to lock with
            _lock(descriptor, out)
        with naming(out / ".lock"):
            os.truncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, out: Path) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        message = f"{out} is in use by another run, process {holder}; wait for it, or give another --out"
        raise PassError(message) from error
    except OSError as error:
        message = f"cannot be locked, so two runs could spoil each other's work: {error.strerror}"
        raise InputError.at(out, message, "give a folder on another disk with --out") from error
