"""The tables of passes and of criteria: what their files declare about themselves. Importing those imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sprunec.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from sprunec.units import Key


@dataclass(frozen=True)
class PassSpec:
    """One pass with all its options: its own, the plan's training options, and the schema's defaults."""

    name: str
    options: Mapping[str, Any]
    pointer: str


# Any is a `Builder` or a `Node` of `graph/`, which stands above.
Lower = Callable[[Any, PassSpec], None]
Check = Callable[[Any], None]
Report = Callable[[dict[str, Any], Any, Mapping[str, Any]], None]
Need = Callable[[Any, Any], Any]  # of the builder and a node; gives `graph.needs.Needs`


@dataclass(frozen=True)
class Pass:
    """One kind of step; its file has a function `run(job)` that does it and returns metrics.

    A file whose pass users may ask to write something outside of OUT also has `write(role, artifact, inputs, path)`,
    which makes that file once the artifact is there.

    Attributes:
        version: raised whenever the same options on the same inputs give another result.
        options: the frozen dataclass that `run` finds in `job.options`.
        inputs: what `run` finds its artifacts under; those in `optional` may be missing.
        output: what kind of artifact it leaves.
        lower: adds what a plan's entry of this name means to the graph; None: plans cannot name it.
        check: raises InputError, before the run begins, for what would end it later.
        needs: says what memory, disk, reading and arithmetic one use of it takes; None: next to nothing.
        report: puts the pass's metrics into the run's report, besides the list of passes.
        trains: all ranks do it together; other passes are rank 0's alone.
        removes: what it takes away from the model: whole units, or single weights.
        refits: the weights that are left are no longer those that entered, though nothing was trained.
        needs_trained: it makes sense on a model that knows something only.
        fails_alone: the run goes on without what it has checked, and ends with exit code 1.
        by_block: it goes through the model block by block, and goes on behind the last one after a kill.
    """

    name: str
    version: int
    options: type
    inputs: tuple[str, ...]
    output: str
    optional: tuple[str, ...] = ()
    lower: Lower | None = None
    check: Check | None = None
    needs: Need | None = None
    report: Report | None = None
    trains: bool = False
    removes: Literal["", "units", "weights"] = ""
    refits: bool = False
    needs_trained: bool = False
    fails_alone: bool = False
    by_block: bool = False

    @property
    def by_target(self) -> bool:
        """Tell whether a target of its own says how much goes."""
        return self.removes == "units" and "target" in getattr(self.options, "__dataclass_fields__", ())

    @property
    def changes_weights(self) -> bool:
        """Tell whether the weights that are left are no longer those that entered."""
        return self.trains or self.refits

    @property
    def makes_model(self) -> bool:
        """Tell whether it gives the newest model, in whatever form."""
        return self.output in ("model", "gated", "rewritten", "emitted")


PASSES = Registry(Pass, "sprunec.passes")
UNKNOWN = Pass("", 0, object, (), "")


@dataclass(frozen=True)
class Criterion:
    """One way to score units: the higher, the more worth keeping.

    Attributes:
        score: by (layer, unit), a tensor (units,), of what it needs.
        needs: "weights", one tensor at a time: `masks.scores.Weights`. Or from calibration batches, block by block,
            "squares" of what goes into projections or their "products": `masks.calibration.BlockStatistics`, and the
            scores are the block's. Or "gradients", with the model in memory: `masks.scores.Calibration`. Of blocks,
            their "states", or "losses" without them: `masks.depth.Depth`.
        unit: the one that it scores; empty for all.
        again: measured anew after each that goes.
    """

    name: str
    score: Callable[[Any], dict[Key, Tensor]]
    needs: Literal["weights", "squares", "products", "gradients", "states", "losses"] = "gradients"
    unit: str = ""
    again: bool = False

    @property
    def calibrates(self) -> bool:
        """Tell whether it runs batches through the model."""
        return self.needs != "weights"


CRITERIA = Registry(Criterion, "sprunec.masks.criteria")


def calibrates(criterion: object) -> bool:
    """Tell whether scoring by it runs batches through the model; what a plan writes need not be a name."""
    return isinstance(criterion, str) and criterion in CRITERIA and CRITERIA[criterion].calibrates
