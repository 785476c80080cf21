"""Measure what each choice of a search, alone in the dense model, does to the model's output.

The digest of what is found depends on no target: another one is solved for from the same damages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.needs import Needs
from sprunec.graph.options import CalibrationOptions
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass, PassSpec


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions(CalibrationOptions):
    """Which choices there are, see `plan.search.choices`, and how their damages are measured.

    Attributes:
        batches: those that choices are refitted on.
        damage_batches: those behind them, that damages are measured on.
        criterion: whose best units a choice keeps; None: dims by activation, heads and groups by reconstruction.
        damage: "fisher" or "kl".
        samples: of "fisher", how many next tokens are drawn at each position.
        ridge: see `least_squares.refit`.
    """

    units: tuple[str, ...]
    grid: Mapping[str, Sequence[int]] = field(default_factory=dict)
    multiple_of: Mapping[str, int] = field(default_factory=dict)
    criterion: str | None = None
    damage: str
    damage_batches: int
    samples: int = 1
    ridge: float


def add(build: Builder, spec: PassSpec) -> str:
    """Add the node that measures the choices of a search -> its name; its artifact is `damages_file.Damages`."""
    options = build.options(ChoiceOptions, spec, precision="fp32")
    inputs = {"model": build.model, "data": build.data}
    return build.add("score-choices", options, inputs, "-".join(options.units), about=f"{options.damage} damages")


def needs(build: Builder, node: Node) -> Needs:
    raise NotImplementedError


def run(job: Job[ChoiceOptions]) -> dict[str, Any]:
    raise NotImplementedError


SCORE_CHOICES = Pass(
    "score-choices",
    1,
    ChoiceOptions,
    ("model", "data"),
    "damages",
    needs=needs,
    needs_trained=True,
    by_block=True,
)
