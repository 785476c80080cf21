"""A training pass saved while it runs, so that what stops it costs a few steps and not the pass.

A save is one file, or with weights in shards on several ranks one folder; it is written aside, flushed and renamed, and
its name carries the hash of its content, so that a damaged one is never taken for good. The one before is kept until
the new one is whole. Shards are written from a copy while training goes on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sprunec.checkpoint.writer import nbytes_in
from sprunec.durable import file_sha256, flush, forget, naming, put_in_place, remove
from sprunec.engines.processes.world import World

ASIDE, REST = "save.writing", "rest.pt"
DIGITS = 32
SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass
class Saves:
    """Where one pass is saved, and how often.

    Attributes:
        directory: the pass's own; it may not exist yet.
        every: steps from one save to the next, or a time such as "90s", "10m" or "2h".
        stop: whether the run has been asked to stop; the pass then saves after its step, and stops.
        clock: seconds that never run backwards.
        tell: takes a line about a save that was found damaged.
        world: who trains; any rank may be asked to stop, and rank 0 has the clock and the files.
        last: the last whole save that was read or written here.
        pending: waits for what is being written.
    """

    directory: Path
    every: int | str
    stop: Callable[[], bool]
    clock: Callable[[], float] = time.monotonic
    tell: Callable[[str], None] = lambda text: None
    world: World = field(default_factory=World)
    last: Path | None = field(default=None, init=False)
    pending: Callable[[], None] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._saved_at = self.clock()

    def latest(self) -> dict[str, Any] | None:
        """Read the state of the last whole save, the one that rank 0 has found, to the CPU.

        Of shards it only says where they lie, as `shards`.
        """
        name = self.world.broadcast(self._whole() if self.world.rank == 0 else "")
        if not name:
            return None
        self.last = path = self.directory / name
        file = path / REST if path.is_dir() else path
        with naming(file):
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return state | ({"shards": path} if path.is_dir() else {})

    def _whole(self) -> str:
        for path in sorted(self.directory.glob("step-*"), reverse=True):
            digest = _digest(path)
            if digest and path.name.removesuffix(".pt").rpartition("-")[2] == digest:
                return path.name
            self.tell(f"{path} is damaged, and is not used")
        return ""

    def after_step(self, step: int, steps: int, state: Callable[[], dict[str, Any]]) -> None:
        """Save if it is time to.

        Raises:
            KeyboardInterrupt: the run was asked to stop; the state is saved.
            OSError: it cannot be saved; the save before is still there.
        """
        if isinstance(self.every, int):
            due = step % self.every == 0
        else:
            due = self.clock() - self._saved_at >= int(self.every[:-1]) * SECONDS[self.every[-1]]
        due = due and self.world.rank == 0 and step < steps
        asked, due = map(bool, self.world.total([float(self.stop()), float(due)]))
        if asked or due:
            self._save(step, state())
        if asked:
            self.settle()
            raise KeyboardInterrupt

    def settle(self) -> None:
        """Wait for what is being written; raises OSError if it could not be."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending()

    def _save(self, step: int, state: dict[str, Any]) -> None:
        """Write at once what is small, or all that there is, for it is about to change, and shards meanwhile."""
        self.settle()
        shards, aside = state.pop("shards", None), self.directory / ASIDE
        if self.world.rank == 0:
            self._write(step, aside, state, shards is not None)
        if shards is not None:
            from sprunec.engines.shards import write_shards

            self.world.total([0.0])  # nobody writes into a folder that is not there
            self.pending = write_shards(aside, shards, lambda: self._seal(step, aside))

    def _write(self, step: int, aside: Path, state: dict[str, Any], beside_shards: bool) -> None:
        if not self.directory.is_dir():
            self.directory.mkdir(parents=True)
            flush(self.directory.parent)
        remove(aside)  # what a run that was killed has left
        if beside_shards:
            aside.mkdir()
        path = aside / REST if beside_shards else aside
        try:
            with naming(path, nbytes_in(state)):
                with path.open("xb") as stream:
                    torch.save(state, stream)
                flush(path)
            if not beside_shards:
                self._seal(step, aside)
        except BaseException:
            forget(path)
            raise

    def _seal(self, step: int, aside: Path) -> None:
        """Give what is whole its name, and remove the save before."""
        suffix = "" if aside.is_dir() else ".pt"
        if not suffix:
            flush(aside)
        path = self.directory / f"step-{step:09d}-{_digest(aside)}{suffix}"
        put_in_place(aside, path)
        self.last, self._saved_at = path, self.clock()
        for old in self.directory.glob("step-*"):
            if old != path:
                remove(old)


def _digest(path: Path) -> str:
    """Hash a file's content, or names and contents of a folder's files; nothing of what is or holds anything else."""
    if not path.is_dir():
        return file_sha256(path)[:DIGITS] if path.is_file() else ""
    files = sorted(path.iterdir())
    if not all(file.is_file() for file in files):
        return ""
    lines = "".join(f"{file.name} {_digest(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:DIGITS]
