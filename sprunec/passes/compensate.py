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

from sprunec.graph.options import CalibrationOptions
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass
from sprunec.units import INSIDE, Cut, gate_units

if TYPE_CHECKING:
    from torch import Tensor

    from sprunec.graph.builder import Builder
    from sprunec.masks.calibration import Moments
    from sprunec.plan.declared import PassSpec
    from sprunec.rewrite.projections import Projection

    Soft = Mapping[tuple[int, str], Tensor]


@dataclass(frozen=True, kw_only=True)
class RefitOptions(CalibrationOptions):
    """Which units have gates; `learned`: their soft gates count."""

    unit: tuple[str, ...]
    learned: bool


def add(build: Builder, spec: PassSpec, masks: str, scores: str = "") -> None:
    """Refit the model that masks are put on; where its weights have learned beside gates, `scores` has those."""
    if spec.options["compensate"] is None:
        return
    learned = scores == build.model
    options = build.options(RefitOptions, spec, unit=spec.options.get("unit", tuple(INSIDE)), learned=learned)
    inputs = {"model": build.model, "masks": masks} | build.data_inputs()
    inputs |= {"scores": scores} if learned else {}
    build.model = build.add("compensate", options, inputs, about=spec.options["compensate"])


def run(job: Job[RefitOptions]) -> dict[str, Any]:
    from sprunec.masks import gates as hard_concrete
    from sprunec.masks.calibration import calibrate
    from sprunec.masks.mask_tensors import load_scores
    from sprunec.rewrite.gating import insert_gates

    config, model = job.config(), job.model()
    blocks = job.traced(model)
    gates = insert_gates(model, blocks, gate_units(job.options.unit))
    # What learned gates are without noise (Louizos, Welling & Kingma 2018, equation 13); nothing after a score.
    learned = load_scores(job.inputs["scores"]) if job.options.learned else {}
    soft = {key: hard_concrete.expected_gate(value) for key, value in learned.items()}
    for key, value in soft.items():
        gates.set(*key, value.to(job.place.device))
    moments = calibrate(model, blocks, job.batches(config), job.place)
    refitted = _refit_all(moments, job.left(), soft)
    job.save({name: tensor for name, tensor in model.state_dict().items() if ".gates." not in name})
    return {"refitted": refitted}


def _refit_all(moments: Moments, kept: Cut, soft: Soft) -> int:
    """Refit in place; return how many weights were refitted."""
    import torch

    from sprunec.masks.least_squares import refit
    from sprunec.rewrite.keep import keeps

    count = 0
    for projection, moment in moments.inputs.values():
        block = projection.block
        columns = projection.kept(keeps(block, kept, "forward"))
        owners = [residual.kind for residual in block.forward.residuals if projection.tensor in residual.tensors]
        if not columns or not all(kept.has(block.index, kind) for kind in owners):
            continue
        weight, index = projection.weight, torch.tensor(columns)
        gate = _column_gate(projection, soft)
        gate = gate.index_fill(0, index, 1.0) if gate is not None else None
        with torch.no_grad():
            weight[:, index.to(weight.device)] = refit(moment, weight, index, gate)
        count += 1
    return count


def _column_gate(projection: Projection, soft: Soft) -> Tensor | None:
    """Multiply all soft gates on what goes into a projection: (columns,)."""
    gate: Tensor | None = None
    for (index, unit), value in soft.items():
        units = projection.units(unit) if index == projection.block.index else None
        if units is not None:
            outer, _, inner = units
            along = value.view(1, -1, 1).expand(outer, -1, inner).flatten()
            gate = along if gate is None else gate * along
    return gate


COMPENSATE = Pass("compensate", 2, RefitOptions, ("model", "masks", "data"), "model", ("scores",), refits=True)
