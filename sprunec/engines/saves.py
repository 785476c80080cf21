"""A training pass saved while it runs, so that what stops it costs a few steps and not the pass.

A save is one file, written aside, flushed and renamed; its name carries the hash of its content, so that a damaged one
is never taken for good. The one before is kept until the new one is whole.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

NAME = "step-{step:09d}-{digest}.pt"
DIGITS = 32


@dataclass(frozen=True)
class Saves:
    """Where one pass is saved.

    Attributes:
        directory: the pass's own; it may not exist yet.
        every: steps from one save to the next.
        stop: whether the run has been asked to stop; the pass then saves after its step, and stops.
    """

    directory: Path
    every: int
    stop: Callable[[], bool]

    def latest(self) -> dict[str, Any] | None:
        """The state of the last whole save, on the CPU."""
        for path in sorted(self.directory.glob("step-*.pt"), reverse=True):
            content = path.read_bytes()
            if path.stem.rpartition("-")[2] == _digest(content):
                state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                return state
        return None

    def after_step(self, step: int, steps: int, state: Callable[[], dict[str, Any]]) -> None:
        """Save if it is time to.

        Raises:
            KeyboardInterrupt: the run was asked to stop; the state is saved.
        """
        asked = self.stop()
        if asked or (step % self.every == 0 and step < steps):
            self._keep(step, state())
        if asked:
            raise KeyboardInterrupt

    def _keep(self, step: int, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / NAME.format(step=step, digest=_digest(content))
        aside = path.with_suffix(".writing")
        with aside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
        for old in self.directory.iterdir():
            if old != path:
                old.unlink()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]
