"""Files that are whole or not there, whatever stops the machine: written aside, flushed, renamed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path, needed: int | None = None) -> Iterator[None]:
    """Give an error of reading, writing or flushing, which knows a number and no name, the name `path`.

    Args:
        needed: bytes that are to be written there, where that is known.
    """
    try:
        yield
    except OSError as error:
        _name(error, path, needed)
        raise
    except RuntimeError as error:  # torch then closes its archive, fails again, and tells of that
        if not isinstance(error.__context__, OSError):
            raise
        _name(error.__context__, path, needed)
        raise error.__context__ from None


def _name(error: OSError, path: Path, needed: int | None) -> None:
    if error.errno is not None and error.filename is None:
        error.filename = str(path)
    if needed is not None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        error.add_note(f"{needed:,} bytes were to be written")


def flush(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's names, before anything else is done."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(aside: Path, path: Path) -> None:
    """Rename what is flushed already, and flush the folder: the new name then survives a loss of power, too."""
    os.replace(aside, path)
    flush(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """The whole file or the old one, whatever happens meanwhile; a link in its place is replaced, not followed.

    Raises:
        OSError: it cannot be written; nothing is left aside.
    """
    _replace(path, text.encode("utf-8"))


def put_file(path: Path, content: bytes) -> None:
    """`write_atomically` for bytes; a file that holds just this already is left alone.

    Raises:
        OSError: it cannot be written; what was at `path` is as it was.
    """
    with naming(path):
        if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
            return
    _replace(path, content)


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.unlink(missing_ok=True)
        with naming(path), aside.open("xb") as stream:
            stream.write(content)
        flush(aside)
        put_in_place(aside, path)
    except BaseException:
        forget(aside)
        raise


def forget(path: Path) -> None:
    """Remove a file if that can be done; what failed before is the error to tell of."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
