"""What decides the result of a pass: the options that several passes share, and how they stand in a digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

LOOKED = 8  # batches that a criterion looks at where the plan does not say


@dataclass(frozen=True, kw_only=True)
class Options:
    """What decides a pass's result, besides its inputs; each pass has its own, and some have none.

    A field has its name from the plan's schema, or says what lowering adds. At its default it does not apply, and is
    then no part of a node's digest.
    """

    def document(self) -> dict[str, Any]:
        """List what applies, by name."""
        return _applying(self)


def _applying(options: Any) -> dict[str, Any]:
    """List the fields that are not at their defaults; of options in options, too."""
    found = {}
    for each in fields(options):
        value = getattr(options, each.name)
        if value != (each.default if each.default_factory is MISSING else each.default_factory()):
            found[each.name] = _applying(value) if is_dataclass(value) else value
    return found


@dataclass(frozen=True, kw_only=True)
class BatchOptions(Options):
    """What decides a batch; there are no sizes where the plan has no data."""

    seed: int
    max_length: int = 0
    batch_size: int = 0


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions(BatchOptions):
    """The batches that a pass looks at without training: those that training would see next."""

    batches: int
    first_step: int
    precision: str

    @property
    def sequences(self) -> int:
        return self.batches * self.batch_size


@dataclass(frozen=True, kw_only=True)
class MaskOptions(Options):
    """Which units go, and how many."""

    unit: tuple[str, ...]
    target: Mapping[str, Any]
    budget: str
    tie_heads: bool
