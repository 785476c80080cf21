"""Refit the weights behind units that are about to be cut, so that what stays stands in for them.

The columns of a projection that its mask keeps are fitted to the output that all of them gave; the others keep their
values, since nothing reads them any more. Where gates have been trained, what is cut counts as much as its soft gate
let through, and what is kept counts whole, for the mask opens it whole: fitted to its own soft gate it would shrink,
and with many undecided gates the refit would cost more than it gives. Both the masked and the rewritten model get
these weights, so one still computes what the other does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sprunec.families.cpm_ant.config import LayerKept, local
from sprunec.families.model_directory import read_kept, save_model
from sprunec.masks import gates as hard_concrete
from sprunec.masks.calibration import Moments, look
from sprunec.masks.least_squares import refit
from sprunec.masks.mask_tensors import load_scores
from sprunec.masks.unit_counts import gate_units
from sprunec.passes.bench import config_of, next_batches, open_model, place_of, traced
from sprunec.passes.job import Job
from sprunec.rewrite.gating import insert_gates
from sprunec.rewrite.projections import Projection
from sprunec.rewrite.recipe import keeps

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
    moments = look(model, blocks, next_batches(job, config), place)
    left = [local(b, a) for b, a in zip(before, after, strict=True)]
    refitted = _refit_all(moments, left, soft)
    state = {name: tensor for name, tensor in model.state_dict().items() if ".gates." not in name}
    save_model(job.out, config, before, state)
    return {"refitted": refitted}


def _soft_gates(job: Job) -> Soft:
    """What learned gates are without noise (Louizos, Welling & Kingma 2018, equation 13); nothing after a score."""
    if not job.options["learned"]:
        return {}
    return {key: hard_concrete.expected_gate(value) for key, value in load_scores(job.inputs["scores"]).items()}


@torch.no_grad()
def _refit_all(moments: Moments, kept: Sequence[LayerKept], soft: Soft) -> int:
    """In place; how many weights were refitted."""
    count = 0
    for projection, moment in moments.inputs.values():
        layer = kept[projection.block.index]
        columns = projection.kept(keeps(projection.block, layer, "forward"))
        if columns is None or not columns or _absent(projection, layer):
            continue
        weight, index = projection.weight, torch.tensor(columns)
        gate = _column_gate(projection, soft)
        gate = gate.index_fill(0, index, 1.0) if gate is not None else None
        weight[:, index.to(weight.device)] = refit(moment, weight, index, gate)
        count += 1
    return count


def _absent(projection: Projection, kept: LayerKept) -> bool:
    gone = {"attention": kept.heads is None, "feed_forward": kept.dim_ff is None}
    owners = [r.kind for r in projection.block.forward.residuals if projection.tensor in r.tensors]
    return any(gone[kind] for kind in owners)


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
