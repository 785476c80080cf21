"""A disk that fails: calls that open, read, write, flush, close, make or rename files under one folder raise an errno.

Everything that Python code does to files goes through the functions of `io` and `os` that are replaced here; what
libraries do by themselves in C does not.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

Site = tuple[str, tuple[str, ...]]
OPENS = {"open": io.open, "os.open": os.open}
NAMED = ("mkdir", "replace", "rename", "symlink", "truncate")  # where a link cannot be made, a copy is
NUMBERED = ("fsync", "read", "write")  # by a file's descriptor
NAMING = ("open", "os.open", *NAMED)
IN_FILES = ("read", "readinto", "readline", "write")
ROOT = str(Path(__file__).parents[2] / "sprunec")


class Disk:
    """Counts the calls to files under `folder` by what is called from where, and fails one of them.

    Attributes:
        sites: the calls so far, by their kind and the lines of sprunec that led there.
        fails: the site that fails when it is called for the first time, and how.
        at: a kind of call, the end of a path and an error: or else the first such call fails so.
        failed: the file of the call that has failed.
    """

    def __init__(
        self, folder: Path, fails: tuple[Site, int] | None = None, at: tuple[str, str, int] | None = None
    ) -> None:
        self.folder, self.fails, self.at = str(folder.resolve()), fails, at
        self.sites: dict[Site, int] = {}
        self.failed: Path | None = None

    def call(self, kind: str, path: object) -> None:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        if not isinstance(path, str | os.PathLike) or not os.path.abspath(path).startswith(self.folder):
            return
        if kind == "mkdir" and os.path.isdir(path):
            return  # nothing to make, so nothing to fail
        if kind == "os.open" and _cleans_up():
            return
        site = (kind, _lines())
        self.sites[site] = self.sites.get(site, 0) + 1
        if self.failed is not None:
            return
        if self.fails is not None and site == self.fails[0]:
            self._fail(kind, path, self.fails[1])
        if self.at is not None and kind == self.at[0] and os.path.abspath(path).endswith(self.at[1]):
            self._fail(kind, path, self.at[2])

    def _fail(self, kind: str, path: str | os.PathLike[str], error: int) -> NoReturn:
        self.failed = Path(path)
        # The system knows names where a file is opened, and only numbers where it is read, written, flushed or closed.
        raise OSError(error, os.strerror(error), *([str(path)] if kind in NAMING else []))


def is_named(told: str, path: Path) -> bool:
    """Whether a message names a file; one that is written aside goes by the name that it would get."""
    aside = re.fullmatch(r"\.(.+)\.\d+", path.name)
    return any(name in told for name in (str(path), os.path.realpath(path), aside[1] if aside else str(path)))


def _lines() -> tuple[str, ...]:
    found, frame = [], sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(ROOT):
            found.append(f"{code.co_filename.removeprefix(ROOT)}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(found)


def _cleans_up() -> bool:
    """Within `rmtree`: what cannot be taken away stays, and harms nobody."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_name != "rmtree":
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None


class File:
    """A file whose reads and writes may fail."""

    def __init__(self, disk: Disk, file: Any, path: Any) -> None:
        self._disk, self._file, self._path = disk, file, path

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._file, name)
        if name not in IN_FILES:
            return found

        def checked(*arguments: Any) -> Any:
            self._disk.call(name, self._path)
            return found(*arguments)

        return checked

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """What was written last may be found not to fit only now."""
        written = not self._file.closed and self._file.writable()
        self._file.close()
        if written:
            self._disk.call("close", self._path)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


@contextmanager
def watched(disk: Disk) -> Iterator[Disk]:
    """For the time of the block; only files that this project's code opens are looked into."""
    whole_open = io.open

    def open_(file: Any, *arguments: Any, **options: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else file
        if not isinstance(file, int):
            disk.call("open", file)
        found = whole_open(file, *arguments, **options)
        return File(disk, found, path) if os.path.abspath(path).startswith(disk.folder) else found

    def checked(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            disk.call(name, path)
            return real(path, *arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", open_)
        patch.setattr(builtins, "open", open_)
        # A copy reads and writes, so that both can fail.
        patch.setattr(shutil, "_USE_CP_SENDFILE", False, raising=False)
        for name in ("open", *NUMBERED, *NAMED):
            patch.setattr(os, name, checked(name if name in NAMED else f"os.{name}", getattr(os, name)))
        yield disk


ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)
