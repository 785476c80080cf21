"""Cut the masked-out weights for real: only slices, so the small model computes what the masked one computed.

From file to file, so that a checkpoint of any size goes through; see `rewrite/stream.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sprunec.checkpoint.reader import Tensors
from sprunec.checkpoint.safetensors_file import Shape
from sprunec.checkpoint.writer import Output, check_room, link_weights, write_outputs
from sprunec.families.cpm_ant.config import local
from sprunec.families.model_directory import open_model_tensors, read_kept, save_outputs
from sprunec.passes.bench import config_of, traced_shape
from sprunec.passes.job import Job
from sprunec.rewrite.recipe import Recipe, make_recipe, read_origin, save_recipe
from sprunec.rewrite.streaming import cut_outputs, expand_outputs


@dataclass(frozen=True)
class Origin:
    """Where the model that enters comes from.

    Attributes:
        recipe: from the plan's input shape to its own.
        shapes: in the plan's input shape.
        linked: whose weights are that shape's last values already; None: they are made from `outputs`.
    """

    recipe: Recipe
    shapes: Mapping[str, Shape]
    linked: Path | None = None
    outputs: Mapping[str, Output] = field(default_factory=dict)


def run(job: Job) -> dict[str, Any]:
    config = config_of(job)
    before, after = read_kept(job.inputs["model"]), read_kept(job.inputs["masks"])
    recipe = make_recipe(traced_shape(config), [local(b, a) for b, a in zip(before, after, strict=True)])
    tensors, small = open_model_tensors(job.inputs["model"]), config.cut(before, after)
    outputs, origin = cut_outputs(recipe, tensors), _origin(job, tensors)
    check_room(job.out, sum(output.nbytes for output in (*outputs.values(), *origin.outputs.values())))
    save_outputs(job.out, small, after, outputs)
    place = save_recipe(job.out, origin.recipe.then(recipe), origin.shapes)
    if origin.linked is not None:
        link_weights(origin.linked, place)
    else:
        write_outputs(origin.outputs, place)
    return {"parameters_before": config.parameters(), "parameters": small.parameters()}


def _origin(job: Job, tensors: Tensors) -> Origin:
    if "origin" not in job.inputs:
        return Origin(Recipe(), tensors.shapes(), job.inputs["model"])
    earlier, last = read_origin(job.inputs["origin"])
    if job.inputs["origin"] == job.inputs["model"]:  # nothing has been trained since the last cut
        return Origin(earlier, last.shapes(), job.inputs["origin"] / "origin")
    return Origin(earlier, last.shapes(), outputs=expand_outputs(earlier, last, tensors))
