"""Masks from files, in the indices of the plan's input model."""

from __future__ import annotations

import json
from typing import Any

from sprunec.errors import InputError
from sprunec.masks.matching import read_masks
from sprunec.model.checkpoint import read_kept
from sprunec.model.config import kept_to_json
from sprunec.passes.job import Job


def run(job: Job) -> dict[str, Any]:
    paths = job.files["paths"]
    found = read_masks(paths, read_kept(job.inputs["source"]), read_kept(job.inputs["model"]))
    if all(layer.heads is None and layer.dim_ff is None for layer in found.kept):
        raise InputError.at(paths[0], "leaves nothing of the model", "keep at least one sublayer")
    (job.out / "kept.json").write_text(json.dumps(kept_to_json(found.kept)))
    metrics: dict[str, Any] = {"files": [path.name for path in paths]}
    return metrics | ({"notes": list(found.notes)} if found.notes else {})
