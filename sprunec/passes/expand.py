"""The small model's weights back in the plan's input shape; cut parts keep their last values."""

from __future__ import annotations

from typing import Any

from sprunec.checkpoint.writer import link_weights
from sprunec.families.model_directory import describe, open_model_tensors, read_kept, save_outputs
from sprunec.passes.bench import config_of
from sprunec.passes.job import Job
from sprunec.rewrite.recipe import read_origin
from sprunec.rewrite.streaming import expand_outputs


def run(job: Job) -> dict[str, Any]:
    config, kept = config_of(job, "source"), read_kept(job.inputs["source"])
    origin = job.inputs.get("origin")
    if origin in (None, job.inputs["model"]):  # nothing has been cut, or nothing trained since
        describe(job.out, config, kept)
        link_weights(job.inputs["model"] if origin is None else origin / "origin", job.out)
    else:
        recipe, full = read_origin(origin)
        save_outputs(job.out, config, kept, expand_outputs(recipe, full, open_model_tensors(job.inputs["model"])))
    return {"parameters": config.parameters()}
