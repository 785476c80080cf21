"""Cut the masked-out weights for real: only slices, so the small model computes what the masked one computed.

From file to file, so that a checkpoint of any size goes through; see `rewrite/recipe_files.py`.
"""

from __future__ import annotations

from typing import Any

from sprunec.graph.arithmetic import by_rows
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.needs import Needs
from sprunec.graph.options import Options
from sprunec.passes import compare, compensate
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass, PassSpec


def add(build: Builder, spec: PassSpec, masks: str, scores: str = "") -> None:
    """Cut the newest model to what masks leave, refitted if their pass says so; they were made of scores."""
    compensate.add(build, spec, masks, scores)
    if spec.options.get("budget") != "per-layer":
        build.widest = build.sizes[build.model].largest_block
    build.sure = build.sure and "target" in spec.options  # else it is not known yet how much that leaves
    if "target" in spec.options:
        build.left = build.left.planned(*(spec.options[key] for key in ("unit", "target", "multiple_of")))
    entering, inputs = build.model, {"model": build.model, "masks": masks, "origin": build.roles.origin}
    small = build.add("rewrite", Options(), inputs, about="slices only")
    if build.changes_weights():  # else the comparison at the end says it all
        compare.add(build, entering, masks, small)
    build.model = build.roles.origin = small


def needs(build: Builder, node: Node) -> Needs:
    """Write the small model, and of one that was cut before and changed since, its weights in the input's shape."""
    given, made, origin = node.inputs["model"], [build.sizes[node.name]], node.inputs.get("origin")
    made += [build.sizes[build.roles.source].stored_as(build.sizes[given])] if origin not in (None, given) else []
    return by_rows(build.sizes[given], made)


def run(job: Job[Options]) -> dict[str, Any]:
    from sprunec.checkpoint.writer import Output, check_room, link_weights, write_outputs
    from sprunec.families.model_directory import save_outputs
    from sprunec.models.meta_models import traced_shape
    from sprunec.rewrite.recipe import Recipe, make_recipe, read_origin, save_recipe
    from sprunec.rewrite.recipe_files import cut_outputs, expand_outputs

    config, kept, tensors, linked = job.config(), job.kept("masks"), job.weights(), job.inputs["model"]
    recipe, small = make_recipe(traced_shape(config), job.left()), config.cut(job.kept(), kept)
    outputs = cut_outputs(recipe, tensors)
    # The last values of all weights in the plan's input shape stay beside the small ones: as a link to where they are
    # already, or made anew where the model has been cut before and trained since.
    earlier, full, written = Recipe(), tensors, dict[str, Output]()
    if (origin := job.inputs.get("origin")) is not None:
        earlier, full = read_origin(origin)
        written = expand_outputs(earlier, full, tensors) if origin != linked else {}
        linked = origin / "origin"
    check_room(job.out, sum(output.nbytes for output in (*outputs.values(), *written.values())))
    save_outputs(job.out, small, kept, outputs)
    place = save_recipe(job.out, earlier.then(recipe), full.shapes())
    if written:
        write_outputs(written, place)
    else:
        link_weights(linked, place)
    return {"parameters_before": config.parameters(), "parameters": small.parameters()}


REWRITE = Pass("rewrite", 2, Options, ("model", "masks"), "rewritten", ("origin",), needs=needs)
