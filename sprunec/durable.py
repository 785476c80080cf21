"""Files that are whole or not there, whatever stops the machine: written aside, flushed, renamed.

Whatever fails here, and within `naming`, says which file it was.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CHUNK_BYTES = 2**20


@contextmanager
def naming(path: Path, needed: int | None = None) -> Iterator[None]:
    """Give an error of reading, writing or flushing, which knows a number and no name, the name `path`.

    Args:
        needed: bytes that are to be written there, where that is known.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch then closes its archive, fails again, and tells of that
        told = error if isinstance(error, OSError) else error.__context__
        if isinstance(told, OSError) and told.errno is not None and told.filename in (None, path, str(path)):
            # whoever opened a link is told of the file behind it
            told.filename = os.path.realpath(path) if path.is_symlink() else str(path)
            if needed is not None and told.errno in NO_ROOM:
                told.add_note(f"{needed:,} bytes were to be written")
        if told is error or not isinstance(told, OSError):
            raise
        raise told from None


def read_file(path: Path) -> str:
    """Read the text of a file in UTF-8; an OSError says which it is, as those of all functions below do."""
    with naming(path):
        return path.read_text(encoding="utf-8")


def file_sha256(path: Path) -> str:
    """Hash a file's content."""
    with naming(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_into(path: Path, spans: Iterable[tuple[int, int]], into: memoryview) -> None:
    """Read parts of a file, one after the other, into memory that is as long as all of them.

    Args:
        spans: each from its first byte to behind its last.
    """
    done = 0
    with naming(path), path.open("rb", buffering=0) as stream:
        for first, last in spans:
            stream.seek(first)
            end = done + last - first
            while done < end:
                if not (count := stream.readinto(into[done:end])):
                    raise OSError(errno.ENODATA, "it has become shorter while it was read")
                done += count


def write_new(path: Path, content: str | bytes) -> None:
    """Write a file where it stays: a part of something that counts only once all of it is there."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with naming(path, len(data)):
        path.write_bytes(data)


def copy_file(source: Path, target: Path) -> None:
    """Copy the content; an OSError says which of the two it is about."""

    def chunks() -> Iterator[bytes]:
        with naming(source), source.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    with naming(target, source.stat().st_size), target.open("wb") as stream:
        for chunk in chunks():
            stream.write(chunk)


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name; where a disk knows no such names, a copy has it."""
    try:
        os.link(source, target)
    except OSError:
        copy_file(source, target)


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


def write_atomically(path: Path, content: str | bytes) -> None:
    """Put the whole file there, or leave the old one, and nothing aside; a link is replaced, not followed."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.unlink(missing_ok=True)
        with naming(path, len(data)), aside.open("xb") as stream:
            stream.write(data)
        flush(aside)
        put_in_place(aside, path)
    except BaseException as error:
        forget(aside)
        if isinstance(error, OSError) and error.filename == str(aside):  # a name that nobody knows
            error.filename = str(path)
        raise


def put_file(path: Path, content: bytes) -> None:
    """Do as `write_atomically`; a file that holds just this already is left alone."""
    with naming(path):
        if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
            return
    write_atomically(path, content)


def forget(path: Path) -> None:
    """Remove a file if that can be done; what failed before is the error to tell of."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Take away a file, a link, or a directory with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
