"""The small model's weights back in the plan's input shape; cut parts keep their last values."""

from __future__ import annotations

from typing import Any

from sprunec.model.checkpoint import read_kept, read_state, save_model
from sprunec.passes.bench import config_of
from sprunec.passes.job import Job
from sprunec.rewrite.recipe import read_origin


def run(job: Job) -> dict[str, Any]:
    state = read_state(job.inputs["model"])
    if "origin" in job.inputs:
        recipe, full = read_origin(job.inputs["origin"])
        state = recipe.expand(full, state)
    config = config_of(job, "source")
    save_model(job.out, config, read_kept(job.inputs["source"]), state)
    return {"parameters": config.parameters()}
