"""A training pass saved while it runs, so that what stops it costs a few steps and not the pass.

A save is one file, or with weights in shards on several ranks one folder; it is written aside, flushed and renamed, and
its name carries the hash of its content, so that a damaged one is never taken for good. The one before is kept until
the new one is whole. Shards are written from a copy while training goes on.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sprunec.checkpoint.writer import nbytes_in
from sprunec.durable import file_sha256, flush, forget, naming, put_in_place, remove
from sprunec.engines.world import World

NAME, ASIDE, REST = "step-{step:09d}-{digest}", "save.writing", "rest.pt"
DIGITS = 32
SECONDS = {"s": 1, "m": 60, "h": 3600}


class Saves:
    """Where one pass is saved, and how often.

    Args:
        directory: the pass's own; it may not exist yet.
        every: steps from one save to the next, or a time such as "90s", "10m" or "2h".
        stop: whether the run has been asked to stop; the pass then saves after its step, and stops.
        clock: seconds that never run backwards.
        tell: takes a line about a save that was found damaged.
        world: who trains; any rank may be asked to stop, and rank 0 has the clock and the files.

    Attributes:
        last: the last whole save that was read or written here.
    """

    def __init__(
        self,
        directory: Path,
        every: int | str,
        stop: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str], None] = lambda text: None,
        world: World | None = None,
    ) -> None:
        self.directory, self.every, self.stop, self._tell = directory, every, stop, tell
        self.world = world or World()
        self._clock, self._saved_at = clock, clock()
        self.last: Path | None = None
        self._pending: Future[Any] | None = None

    def latest(self) -> dict[str, Any] | None:
        """Read the state of the last whole save, the one that rank 0 has found, to the CPU.

        Of shards it only says where they lie, as `shards`.
        """
        found = self._whole() if self.world.rank == 0 else None
        name = self.world.broadcast(found.name if found is not None else "")
        if not name:
            return None
        self.last = path = self.directory / name
        file = path / REST if path.is_dir() else path
        with naming(file):
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return state | ({"shards": path} if path.is_dir() else {})

    def _whole(self) -> Path | None:
        for path in sorted(self.directory.glob("step-*"), reverse=True):
            digest = _folder_digest(path) if path.is_dir() else _file_digest(path)
            if digest and path.name.removesuffix(".pt").rpartition("-")[2] == digest:
                return path
            self._tell(f"{path} is damaged, and is not used")
        return None

    def after_step(self, step: int, steps: int, state: Callable[[], dict[str, Any]]) -> None:
        """Save if it is time to.

        Raises:
            KeyboardInterrupt: the run was asked to stop; the state is saved.
            OSError: it cannot be saved; the save before is still there.
        """
        if isinstance(self.every, int):
            due = step % self.every == 0
        else:
            due = self._clock() - self._saved_at >= int(self.every[:-1]) * SECONDS[self.every[-1]]
        due = due and self.world.rank == 0 and step < steps
        asked, due = map(bool, self.world.total([float(self.stop()), float(due)]))
        if asked or due:
            self._save(step, state())
        if asked:
            self.settle()
            raise KeyboardInterrupt

    def settle(self) -> None:
        """Wait for what is being written.

        Raises:
            OSError: it could not be.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _save(self, step: int, state: dict[str, Any]) -> None:
        self.settle()
        shards, aside = state.pop("shards", None), self.directory / ASIDE
        if self.world.rank == 0:
            if not self.directory.is_dir():
                self.directory.mkdir(parents=True)
                flush(self.directory.parent)
            remove(aside)  # what a run that was killed has left
        if shards is not None:
            self._pending = self._begin(step, aside, shards, state)
        elif self.world.rank == 0:
            try:
                path = self.directory / (NAME.format(step=step, digest=_write(aside, state)) + ".pt")
                put_in_place(aside, path)
            except BaseException:
                forget(aside)
                raise
            self._keep_only(path)

    def _begin(self, step: int, aside: Path, shards: dict[str, Tensor], rest: dict[str, Any]) -> Future[None]:
        """Write at once what is small, for it is about to change, and the shards meanwhile."""
        from sprunec.engines.shards import write_shards

        def seal() -> None:
            if self.world.rank == 0:
                flush(aside)
                path = self.directory / NAME.format(step=step, digest=_folder_digest(aside))
                put_in_place(aside, path)
                self._keep_only(path)

        if self.world.rank == 0:
            aside.mkdir()
            _write(aside / REST, rest)
        self.world.total([0.0])  # nobody writes into a folder that is not there
        return write_shards(aside, shards, seal)

    def _keep_only(self, path: Path) -> None:
        self.last, self._saved_at = path, self._clock()
        for old in self.directory.iterdir():
            if old != path:
                remove(old)


def _write(path: Path, state: dict[str, Any]) -> str:
    """Write and flush; return the digest of the content."""
    with naming(path, nbytes_in(state)), path.open("xb") as stream:
        hashing = _Hashing(stream)
        torch.save(state, hashing)  # type: ignore[arg-type]
        stream.flush()
        os.fsync(stream.fileno())
    return hashing.digest.hexdigest()[:DIGITS]


def _file_digest(path: Path) -> str:
    """Hash the content; nothing of what is no file."""
    return file_sha256(path)[:DIGITS] if path.is_file() else ""


def _folder_digest(path: Path) -> str:
    """Hash names and contents of all files in a folder; nothing if it holds more than files."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if not file.is_file():
            return ""
        digest.update(f"{file.name} {_file_digest(file)}\n".encode())
    return digest.hexdigest()[:DIGITS]


class _Hashing:
    """A stream that hashes what goes through it; torch writes an archive from its start to its end."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.digest = stream, hashlib.sha256()
        self.flush = stream.flush

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self._stream.write(content)
