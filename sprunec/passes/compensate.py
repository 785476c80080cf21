"""Refit the weights behind units that are about to be cut, so that what stays stands in for them.

The columns of a projection that its mask keeps are fitted to the output that all of them gave; the others keep their
values, since nothing reads them any more. Where gates have been trained, what is cut counts as much as its soft gate
let through, and what is kept counts whole, for the mask opens it whole: fitted to its own soft gate it would shrink,
and with many undecided gates the refit would cost more than it gives. Both the masked and the rewritten model get
these weights, so one still computes what the other does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sprunec.graph.builder import Builder
from sprunec.graph.options import CalibrationOptions
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass, PassSpec
from sprunec.units import INSIDE, Key

if TYPE_CHECKING:
    from torch import Tensor

    from sprunec.rewrite.projections import Projection


@dataclass(frozen=True, kw_only=True)
class RefitOptions(CalibrationOptions):
    """Which units have gates; `learned`: their soft gates count."""

    unit: tuple[str, ...]
    learned: bool


def add(build: Builder, spec: PassSpec, masks: str, scores: str) -> None:
    """Refit the model that masks are put on, if the pass says so; weights that have learned beside gates by these."""
    if spec.options["compensate"] is None:
        return
    learned = scores == build.model
    options = build.options(RefitOptions, spec, unit=spec.options.get("unit", tuple(INSIDE)), learned=learned)
    inputs = {"model": build.model, "masks": masks, "data": build.data, "scores": scores if learned else ""}
    build.model = build.add("compensate", options, inputs, about=spec.options["compensate"])


def run(job: Job[RefitOptions]) -> dict[str, Any]:
    from sprunec.masks.gates import expected_gate
    from sprunec.masks.mask_tensors import load_scores
    from sprunec.rewrite.keep import keeps

    given, left, count = job.calibration(job.options.unit), job.left(), 0
    # What learned gates are without noise (Louizos, Welling & Kingma 2018, equation 13); nothing after a score.
    learned = load_scores(job.inputs["scores"]) if job.options.learned else {}
    soft = {key: expected_gate(value) for key, value in learned.items()}
    for key, value in soft.items():
        given.gates.set(*key, value.to(job.place.device))
    for projection, moment in given.moments().inputs.values():
        block, columns = projection.block, projection.kept(keeps(projection.block, left, "forward"))
        owners = [residual.kind for residual in block.forward.residuals if projection.tensor in residual.tensors]
        if columns and all(left.has(block.index, kind) for kind in owners):
            _refit(projection, moment, columns, soft)
            count += 1
    job.save(given.weights)
    return {"refitted": count}


def _refit(projection: Projection, moment: Tensor, columns: tuple[int, ...], soft: Mapping[Key, Tensor]) -> None:
    """Refit the columns of one weight, in place."""
    import torch

    from sprunec.masks.least_squares import refit

    weight, index, gate = projection.weight, torch.tensor(columns), torch.ones(len(moment))
    for (layer, unit), value in soft.items():
        if layer == projection.block.index and (units := projection.units(unit)) is not None:
            outer, _, inner = units
            gate *= value.view(1, -1, 1).expand(outer, -1, inner).flatten()
    weight[:, index.to(weight.device)] = refit(moment, weight, index, gate.index_fill(0, index, 1.0))


COMPENSATE = Pass("compensate", 2, RefitOptions, ("model", "masks", "data"), "model", ("scores",), refits=True)
