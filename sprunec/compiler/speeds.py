"""How fast a device is, measured here or said by the user, and how long that makes what passes take; needs no torch."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from sprunec.graph.needs import DECODED, EXACT, SINGLE, TRAINED, Needs

GIVEN = "given"
LETTERS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


@dataclass(frozen=True)
class Speeds:
    """Of this machine.

    Attributes:
        float32, float64: operations a second, in passes that run a block of the model.
        training: the same where it goes back through the block, too, and its weights move.
        decoding: the same where it has one position of one text at a time, and weights that are in no cache.
        read: bytes a second of the checkpoint's, into float32; None where there is no checkpoint.
        trace: seconds until the blocks are traced, with the libraries that this takes.
        opening: seconds until that is done again.
    """

    device: str
    float32: float
    float64: float
    training: float
    decoding: float
    read: float | None
    trace: float
    opening: float

    def seconds(self, needs: Needs) -> float:
        """Tell how long what is counted takes; writing is taken to be as fast as reading."""
        speeds = {SINGLE: self.float32, EXACT: self.float64, TRAINED: self.training, DECODED: self.decoding}
        work = sum(amount / speeds[kind] for kind, amount in needs.operations.items())
        moved = (needs.reads + needs.disk) / self.read if self.read else 0.0
        return work + moved + needs.traced * self.trace + needs.opened * self.opening + needs.lasts

    def document(self) -> dict[str, Any]:
        return asdict(self)


def given_speeds(written: str) -> Speeds | None:
    """Take so many operations a second, e.g. 40T, in all that is done; None for what says no number.

    Reading then takes no time.
    """
    if (match := re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)([KMGTP]?)", written)) is None or not float(match[1]):
        return None
    rate = float(match[1]) * LETTERS[match[2]]
    return Speeds(GIVEN, rate, rate, rate, rate, None, 0.0, 0.0)
