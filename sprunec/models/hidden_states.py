"""Hidden states of all batches between two blocks: in memory or in files, and to be found again after a kill."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprunec.durable import file_sha256, naming, read_into
from sprunec.engines.device import Place
from sprunec.machine import physical_memory
from sprunec.plan.scale import FLOAT, states_fit

FILES = ("hidden-states-0.bin", "hidden-states-1.bin")


class HiddenStates:
    """Hidden states (B, N, D) of each batch in float32; those in front of a block, until all behind it are there.

    Args:
        place: where they are wanted.
        folder: where the files are; None: there are none, and states that are lost are lost.
        keep: "memory" or "disk"; "auto": in memory where they take a small part of it.
        several: how many such are kept.
    """

    def __init__(self, place: Place, folder: Path | None = None, keep: str = "auto", several: int = 1) -> None:
        self._place, self._folder, self._keep, self._several = place, folder, keep, several
        self._shapes: list[tuple[int, ...]] = []
        self._memory: list[Tensor] | None = None
        self._current, self._digest, self._hash, self._next = 0, "", hashlib.sha256(), 0

    def start(self, shapes: Sequence[Sequence[int]]) -> None:
        """Make room for states of these shapes, which are put there next."""
        self._shapes = [tuple(shape) for shape in shapes]
        self._starts = [0, *accumulate(FLOAT * torch.Size(shape).numel() for shape in shapes)]
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        home = home_of(self._several * self._starts[-1], self._place, self._keep)
        if home is not None or self._folder is None:
            self._home = home or torch.device("cpu")
            self._memory = [torch.empty(0)] * len(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> Tensor:
        if self._memory is not None:
            return self._memory[number].to(self._place.device)
        return self._read(number).to(self._place.device)

    def put(self, number: int, states: Tensor) -> None:
        """Keep what a batch has come to; batches come in order, and none is asked for again before `turn`."""
        assert (number, tuple(states.shape)) == (self._next, self._shapes[number])
        self._next += 1
        if self._memory is not None:
            self._memory[number] = states.to(self._home)
        if self._folder is not None:
            content = states.cpu().contiguous().view(torch.uint8).numpy().data.cast("B")
            self._hash.update(content)
            with naming(path := self._path(1 - self._current)), path.open("r+b" if number else "wb") as file:
                file.seek(self._starts[number])
                file.write(content)

    def turn(self) -> None:
        """Take what was put for what is there."""
        assert self._next == len(self), f"{self._next} of {len(self)} batches are there"
        self._current, self._digest = 1 - self._current, self._hash.hexdigest()
        self._hash, self._next = hashlib.sha256(), 0

    def state(self) -> dict[str, Any]:
        """Say what finds them again."""
        return {"shapes": self._shapes, "current": self._current, "digest": self._digest}

    def load(self, state: dict[str, Any]) -> bool:
        """Find them again; False if they are no longer what they were."""
        path = self._path(state["current"])
        if not path.is_file() or file_sha256(path) != state["digest"]:
            return False
        self._current, self._digest = state["current"], state["digest"]
        self.start(state["shapes"])
        if self._memory is not None:
            self._memory = [self._read(number).to(self._home) for number in range(len(self))]
        return True

    def _path(self, which: int) -> Path:
        assert self._folder is not None
        return self._folder / FILES[which]

    def _read(self, number: int) -> Tensor:
        found = torch.empty(self._shapes[number])
        span = self._starts[number : number + 2]
        read_into(self._path(self._current), [(span[0], span[1])], found.view(torch.uint8).numpy().data.cast("B"))
        return found


def home_of(nbytes: int, place: Place, keep: str) -> torch.device | None:
    """Choose the memory that so many bytes of states go into: the device's, else the machine's; None: a file."""
    if keep == "disk":
        return None
    if place.device.type != "cpu" and states_fit(nbytes, place.memory(1)):
        return place.device
    if keep == "memory" or states_fit(nbytes, physical_memory()):
        return torch.device("cpu")
    return None
