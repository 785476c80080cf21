"""A training pass saved while it runs, so that what stops it costs a few steps and not the pass.

A save is one file, written aside, flushed and renamed; its name carries the hash of its content, so that a damaged one
is never taken for good. The one before is kept until the new one is whole.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sprunec.durable import flush, forget, put_in_place
from sprunec.engines.world import Alone, World

NAME = "step-{step:09d}-{digest}.pt"
DIGITS = 32
SECONDS = {"s": 1, "m": 60, "h": 3600}


class Saves:
    """Where one pass is saved, and how often.

    Args:
        directory: the pass's own; it may not exist yet.
        every: steps from one save to the next, or a time such as "10m".
        stop: whether the run has been asked to stop; the pass then saves after its step, and stops.
        clock: seconds that never run backwards.
        tell: takes a line about a save that was found damaged.
        world: who trains; any of them may be asked to stop, and its lead has the clock and the files.
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
        self.world = world or Alone()
        self._clock, self._saved_at = clock, clock()
        self._last: Path | None = None

    @property
    def last(self) -> Path | None:
        """The last whole save that was read or written here."""
        return self._last

    def latest(self) -> dict[str, Any] | None:
        """The state of the last whole save, on the CPU: the one that the lead has found."""
        found = self._whole() if self.world.lead else None
        name = self.world.share(found.name if found is not None else "")
        self._last = self.directory / name if name else None
        return None if self._last is None else torch.load(self._last, map_location="cpu", weights_only=True)

    def _whole(self) -> Path | None:
        for path in sorted(self.directory.glob("step-*.pt"), reverse=True):
            if not path.is_file():
                continue
            with path.open("rb") as stream:
                if path.stem.rpartition("-")[2] != hashlib.file_digest(stream, "sha256").hexdigest()[:DIGITS]:
                    self._tell(f"{path} is damaged, and is not used")
                    continue
            return path
        return None

    def after_step(self, step: int, steps: int, state: Callable[[], dict[str, Any]]) -> None:
        """Save if it is time to.

        Raises:
            KeyboardInterrupt: the run was asked to stop; the state is saved.
            OSError: it cannot be saved; the save before is still there.
        """
        due = self.world.lead and step < steps and self._is_due(step)
        asked, due = map(bool, self.world.total([float(self.stop()), float(due)]))
        if asked or due:
            self._keep(step, state())
        if asked:
            raise KeyboardInterrupt

    def _is_due(self, step: int) -> bool:
        if isinstance(self.every, int):
            return step % self.every == 0
        return self._clock() - self._saved_at >= seconds(self.every)

    def _keep(self, step: int, state: dict[str, Any]) -> None:
        if not self.world.lead:
            return
        if not self.directory.is_dir():
            self.directory.mkdir(parents=True)
            flush(self.directory.parent)
        aside = self.directory / "save.writing"
        try:
            with aside.open("wb") as stream:
                hashing = _Hashing(stream)
                torch.save(state, hashing)  # type: ignore[arg-type]
                stream.flush()
                os.fsync(stream.fileno())
            path = self.directory / NAME.format(step=step, digest=hashing.digest.hexdigest()[:DIGITS])
            put_in_place(aside, path)
        except BaseException:
            forget(aside)
            raise
        self._last, self._saved_at = path, self._clock()
        for old in self.directory.iterdir():
            if old != path:
                old.unlink()


def seconds(time: str) -> int:
    """Of "90s", "10m" or "2h"."""
    return int(time[:-1]) * SECONDS[time[-1]]


class _Hashing:
    """A stream that hashes what goes through it; torch writes an archive from its start to its end."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.digest = stream, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self._stream.write(content)

    def flush(self) -> None:
        self._stream.flush()
