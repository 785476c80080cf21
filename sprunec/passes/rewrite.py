"""Cut the masked-out weights for real: only slices, so the small model computes what the masked one computed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sprunec.model.checkpoint import empty_model, fill, read_kept, read_state, save_model
from sprunec.model.config import local
from sprunec.passes.bench import config_of, traced_shape
from sprunec.passes.job import Job
from sprunec.rewrite.recipe import Recipe, make_recipe, read_origin, save_origin


def run(job: Job) -> dict[str, Any]:
    config = config_of(job)
    before, after = read_kept(job.inputs["model"]), read_kept(job.inputs["masks"])
    recipe = make_recipe(traced_shape(config), [local(b, a) for b, a in zip(before, after, strict=True)])
    state = read_state(job.inputs["model"])
    cut, small = recipe.cut(state), config.cut(before, after)
    fill(empty_model(small), cut, "the rewritten model")
    save_model(job.out, small, after, cut)
    _save_origin(job, recipe, state)
    return {"parameters_before": config.parameters(), "parameters": small.parameters()}


def _save_origin(job: Job, recipe: Recipe, state: dict[str, Tensor]) -> None:
    """Where the small model comes from: one recipe from the plan's input shape, and that shape's last values."""
    full = state
    if "origin" in job.inputs:
        earlier, last = read_origin(job.inputs["origin"])
        full, recipe = earlier.expand(last, state), earlier.then(recipe)
    save_origin(job.out, recipe, full)
