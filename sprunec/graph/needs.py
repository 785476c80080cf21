"""What passes need of memory, disk, reading and arithmetic; `arithmetic` counts it. Needs no torch.

They are upper bounds where layers may come out differently, but for `Whole` and `least_disk`: a run is refused where it
has less of these, so they count only what cannot be done without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

LIBRARIES = 5e8  # bytes that torch, transformers and this package take for themselves
SINGLE, EXACT = "float32", "float64"
TRAINED = "training"  # forward and backward
DECODED = "decoding"  # in float32, one position of one text at a time: all weights are read for it
IN_ONE_PIECE = ("model", "training", "masks")  # of the parts of memory
KINDS = SINGLE, EXACT, TRAINED, DECODED
Amounts = Mapping[str, float]


@dataclass(frozen=True)
class Whole:
    """What a pass has in memory in one piece, and cannot do without.

    Attributes:
        host, device: bytes of the machine's memory, and of the device's that the pass works on.
        what: of what.
        remedy: what can be done where there is less.
    """

    host: float
    device: float
    what: str
    remedy: str


@dataclass(frozen=True)
class Needs:
    """What one use of a pass takes.

    Attributes:
        memory: bytes at the peak, by what they are for, without `LIBRARIES`.
        disk: bytes that it leaves in OUT.
        scratch: bytes that it has there besides while it works.
        reads: bytes that it reads.
        operations: floating-point operations, by the arithmetic that they are in.
        least_disk: of all that stays on the disk, what is certain.
        counted: whether all operations are; else nobody knows before it is done.
        tokens: of text that go through a model, each time that they do.
        traced: whether blocks are traced here for the first time, with the libraries that this takes.
        opened: how many models are made, and their blocks rewritten.
        lasts: seconds that it goes on for, however fast the machine is.
        instead: bytes of memory that an option would save which the plan does not have, by how it is written.
    """

    memory: Amounts = field(default_factory=dict)
    disk: float = 0.0
    scratch: float = 0.0
    reads: float = 0.0
    operations: Amounts = field(default_factory=dict)
    least_disk: float = 0.0
    whole: Whole | None = None
    counted: bool = True
    tokens: float = 0.0
    traced: bool = False
    opened: int = 0
    lasts: float = 0.0
    instead: Amounts = field(default_factory=dict)

    @property
    def peak(self) -> float:
        """Bytes of memory, the libraries' among them."""
        return LIBRARIES + sum(self.memory.values())

    def document(self, seconds: float | None = None) -> dict[str, Any]:
        """Describe them as `schemas/graph.schema.json` does."""
        parts = {name: size for name, size in self.memory.items() if size} | {"libraries": LIBRARIES}
        whole = None
        if self.whole is not None:
            size = sum(self.memory.get(name, 0.0) for name in IN_ONE_PIECE)
            whole = {"bytes": size, "what": self.whole.what, "remedy": self.whole.remedy}
        return {
            "memory": self.peak,
            "memory_of": parts,
            "in_one_piece": whole,
            "tokens": self.tokens,
            "disk": self.disk,
            "scratch": self.scratch,
            "read": self.reads,
            "operations": sum(self.operations.values()) if self.counted else None,
            "seconds": seconds if self.counted else None,
        }


def in_all(needs: Iterable[Needs], published: float) -> Needs:
    """Add up what passes take that run one after the other, and what is published then, in bytes."""
    each = list(needs)
    worst = max(each, key=lambda some: some.peak, default=Needs())
    operations = {kind: sum(some.operations.get(kind, 0.0) for some in each) for kind in KINDS}
    scratch = max((some.scratch for some in each), default=0.0)
    disk, reads = sum(some.disk for some in each) + published, sum(some.reads for some in each) + published
    sums = {name: sum(getattr(some, name) for some in each) for name in ("least_disk", "tokens", "opened", "lasts")}
    return Needs(worst.memory, disk, scratch, reads, operations, traced=any(some.traced for some in each), **sums)
