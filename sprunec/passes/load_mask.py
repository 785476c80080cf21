"""Masks from files, in the indices of the plan's input model."""

from __future__ import annotations

import json
from typing import Any

from sprunec.durable import write_new
from sprunec.errors import InputError
from sprunec.families.cpm_ant.config import LayerKept, kept_to_json
from sprunec.families.cpm_ant.uniform import unevenness
from sprunec.families.model_directory import read_kept
from sprunec.passes.bench import config_of
from sprunec.passes.job import Job


def run(job: Job) -> dict[str, Any]:
    from sprunec.bmcook.masks.matching import read_masks

    paths = job.files["paths"]
    found = read_masks(paths, read_kept(job.inputs["source"]), read_kept(job.inputs["model"]))
    if all(layer.heads is None and layer.dim_ff is None for layer in found.kept):
        raise InputError.at(paths[0], "leaves nothing of the model", "keep at least one sublayer")
    if job.options.get("even"):
        _check_even(job, found.kept)
    write_new(job.out / "kept.json", json.dumps(kept_to_json(found.kept)))
    metrics: dict[str, Any] = {"files": [path.name for path in paths]}
    return metrics | ({"notes": list(found.notes)} if found.notes else {})


def _check_even(job: Job, kept: tuple[LayerKept, ...]) -> None:
    """The plan ends in a form with one width for all layers: better told now than after the training that follows."""
    problems = unevenness(config_of(job).cut(read_kept(job.inputs["model"]), kept))
    if problems:
        message = f"the form cpm-live can't hold what this mask leaves: {problems[0]}"
        raise InputError.at(job.files["paths"][0], message, "give an even mask, or emit another form")
