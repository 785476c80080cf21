"""Refit the weights behind units that are about to be cut, so that what stays stands in for them.

The columns of a projection that its mask keeps are fitted to the output that all of them gave; the others keep their
values, since nothing reads them any more. Where gates have been trained, what is cut counts as much as its soft gate
let through, and what is kept counts whole, for the mask opens it whole: fitted to its own soft gate it would shrink,
and with many undecided gates the refit would cost more than it gives. Both the masked and the rewritten model get
these weights, so one still computes what the other does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sprunec.families.model_directory import read_kept, save_model
from sprunec.masks import gates as hard_concrete
from sprunec.masks.calibration import Moments, calibrate
from sprunec.masks.least_squares import refit
from sprunec.masks.mask_tensors import load_scores
from sprunec.passes.bench import config_of, next_batches, open_model, place_of, traced
from sprunec.passes.job import Job
from sprunec.rewrite.gating import insert_gates
from sprunec.rewrite.projections import Projection
from sprunec.rewrite.recipe import keeps
from sprunec.units import Cut, gate_units

Soft = Mapping[tuple[int, str], Tensor]


def run(job: Job) -> dict[str, Any]:
    place, config = place_of(job), config_of(job)
    model = open_model(job.inputs["model"], place)
    before, after = read_kept(job.inputs["model"]), read_kept(job.inputs["masks"])
    blocks = traced(model, config)
    gates = insert_gates(model, blocks, gate_units(job.options["unit"]))
    soft = _soft_gates(job)
    for key, value in soft.items():
        gates.set(*key, value.to(place.device))
    moments = calibrate(model, blocks, next_batches(job, config), place)
    refitted = _refit_all(moments, after.inside(before), soft)
    state = {name: tensor for name, tensor in model.state_dict().items() if ".gates." not in name}
    save_model(job.out, config, before, state)
    return {"refitted": refitted}


def _soft_gates(job: Job) -> Soft:
    """What learned gates are without noise (Louizos, Welling & Kingma 2018, equation 13); nothing after a score."""
    if not job.options["learned"]:
        return {}
    return {key: hard_concrete.expected_gate(value) for key, value in load_scores(job.inputs["scores"]).items()}


@torch.no_grad()
def _refit_all(moments: Moments, kept: Cut, soft: Soft) -> int:
    """In place; how many weights were refitted."""
    count = 0
    for projection, moment in moments.inputs.values():
        columns = projection.kept(keeps(projection.block, kept, "forward"))
        if columns is None or not columns or _absent(projection, kept):
            continue
        weight, index = projection.weight, torch.tensor(columns)
        gate = _column_gate(projection, soft)
        gate = gate.index_fill(0, index, 1.0) if gate is not None else None
        weight[:, index.to(weight.device)] = refit(moment, weight, index, gate)
        count += 1
    return count


def _absent(projection: Projection, kept: Cut) -> bool:
    block = projection.block
    owners = [r.kind for r in block.forward.residuals if projection.tensor in r.tensors]
    return not all(kept.has(block.index, kind) for kind in owners)


def _column_gate(projection: Projection, soft: Soft) -> Tensor | None:
    """(columns,): the product of all soft gates on what goes into a projection."""
    gate: Tensor | None = None
    for (index, unit), value in soft.items():
        units = projection.units(unit) if index == projection.block.index else None
        if units is not None:
            outer, _, inner = units
            along = value.view(1, -1, 1).expand(outer, -1, inner).flatten()
            gate = along if gate is None else gate * along
    return gate
