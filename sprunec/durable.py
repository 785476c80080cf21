"""Files that are whole or not there, whatever stops the machine: written aside, flushed, renamed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def flush(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's names, before anything else is done."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
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
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.unlink(missing_ok=True)
        with aside.open("x", encoding="utf-8") as stream:
            stream.write(text)
        flush(aside)
        put_in_place(aside, path)
    except BaseException:
        forget(aside)
        raise


def put_file(path: Path, content: bytes) -> None:
    """`write_atomically` for bytes; a file that holds just this already is left alone.

    Raises:
        OSError: it cannot be written; what was at `path` is as it was.
    """
    if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    aside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        aside.chmod(0o644)
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
