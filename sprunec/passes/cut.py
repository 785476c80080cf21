"""Cut the masked-out weights for real: only slices, so the small model computes what the masked one computed.

From file to file, so that a checkpoint of any size goes through; see `rewrite/recipe_files.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sprunec.graph.options import Options
from sprunec.passes import compare
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass

if TYPE_CHECKING:
    from sprunec.graph.builder import Builder
    from sprunec.plan.declared import PassSpec


def add(build: Builder, masks: str, spec: PassSpec | None = None) -> None:
    """Cut the newest model to what masks leave.

    Args:
        spec: the pass whose target says how much that is; None: it is not known yet.
    """
    if spec is not None:
        build.left = build.left.planned(*(spec.options[key] for key in ("unit", "target", "multiple_of")))
    entering, inputs = build.model, {"model": build.model, "masks": masks}
    inputs |= {"origin": build.roles.origin} if build.roles.origin else {}
    small = build.add("rewrite", Options(), inputs, about="slices only")
    if build.changes_weights():  # else the comparison at the end says it all
        compare.add(build, entering, masks, small)
    build.model = build.roles.origin = small


def run(job: Job[Options]) -> dict[str, Any]:
    from sprunec.checkpoint.writer import Output, check_room, link_weights, write_outputs
    from sprunec.families.model_directory import save_outputs
    from sprunec.rewrite.recipe import Recipe, make_recipe, read_origin, save_recipe
    from sprunec.rewrite.recipe_files import cut_outputs, expand_outputs
    from sprunec.rewrite.trace import traced_shape

    config, entering = job.config(), job.inputs["model"]
    recipe, small = make_recipe(traced_shape(config), job.left()), config.cut(job.kept(), job.kept("masks"))
    tensors = job.weights()
    outputs = cut_outputs(recipe, tensors)
    # The last values of all weights in the plan's input shape stay beside the small ones: as a link to where they are
    # already, or made anew where the model has been cut before and trained since.
    earlier, linked, full, written = Recipe(), entering, tensors, dict[str, Output]()
    if "origin" in job.inputs:
        earlier, full = read_origin(job.inputs["origin"])
        linked = job.inputs["origin"] / "origin"
        if job.inputs["origin"] != entering:
            written = expand_outputs(earlier, full, tensors)
    check_room(job.out, sum(output.nbytes for output in (*outputs.values(), *written.values())))
    save_outputs(job.out, small, job.kept("masks"), outputs)
    place = save_recipe(job.out, earlier.then(recipe), full.shapes())
    if written:
        write_outputs(written, place)
    else:
        link_weights(linked, place)
    return {"parameters_before": config.parameters(), "parameters": small.parameters()}


REWRITE = Pass("rewrite", 2, Options, ("model", "masks"), "rewritten", ("origin",))
