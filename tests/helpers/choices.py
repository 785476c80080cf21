"""Choices measured by the pass itself on batches that are given, in a model that is saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sprunec.data.batches import Batch
from sprunec.masks.search.damages_file import Damages, load_damages
from sprunec.passes import score_choices
from sprunec.passes.job import Job
from sprunec.passes.score_choices import ChoiceOptions

REFITTED = 3  # batches of those that are given; the others are measured on
OPTIONS: dict[str, Any] = {
    "seed": 5, "batches": REFITTED, "first_step": 0, "precision": "fp32", "damage": "fisher", "ridge": 0.1,
}  # fmt: skip


@dataclass(frozen=True)
class GivenJob(Job[ChoiceOptions]):
    """A use of the pass on given batches."""

    given: Sequence[Batch] = ()

    def data(self, config: Any) -> Any:
        return SimpleNamespace(batch=lambda step: self.given[step])


def job_of(model: Path, out: Path, batches: Sequence[Batch], units: Sequence[str], **changes: Any) -> GivenJob:
    more = {key: changes.pop(key) for key in ("saves", "engine", "report") if key in changes}
    options = ChoiceOptions(**OPTIONS | {"damage_batches": len(batches) - REFITTED, "units": tuple(units)} | changes)
    given: dict[str, Any] = {"files": {}, "out": out, "device": "cpu", "report": lambda event: None, "given": batches}
    return GivenJob(options, {"model": model, "data": model}, **given | more)


def damages(model: Path, out: Path, batches: Sequence[Batch], units: Sequence[str], **changes: Any) -> Damages:
    out.mkdir(exist_ok=True)
    score_choices.run(job_of(model, out, batches, units, **changes))
    return load_damages(out)
