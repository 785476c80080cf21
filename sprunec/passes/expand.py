"""The small model's weights back in the plan's input shape; cut parts keep their last values."""

from __future__ import annotations

from typing import Any

from sprunec.graph.arithmetic import by_rows
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.needs import Needs
from sprunec.graph.options import Options
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass


def add(build: Builder, model: str) -> str:
    inputs = {"model": model, "source": build.roles.source, "origin": build.roles.origin}
    size = build.sizes[build.roles.source].stored_as(build.sizes[model])
    return build.add("expand", Options(), inputs, size=size, about="back in the input's shape")


def needs(build: Builder, node: Node) -> Needs:
    linked = node.inputs.get("origin") in (None, node.inputs["model"])
    return Needs() if linked else by_rows(build.sizes[node.inputs["model"]], [build.sizes[node.name]])


def run(job: Job[Options]) -> dict[str, Any]:
    from sprunec.checkpoint.writer import link_weights
    from sprunec.families.model_directory import describe, save_outputs
    from sprunec.rewrite.recipe import read_origin
    from sprunec.rewrite.recipe_files import expand_outputs

    config, kept = job.config("source"), job.kept("source")
    origin = job.inputs.get("origin")
    if origin in (None, job.inputs["model"]):  # nothing has been cut, or nothing trained since
        describe(job.out, config, kept)
        link_weights(job.inputs["model"] if origin is None else origin / "origin", job.out)
    else:
        recipe, full = read_origin(origin)
        save_outputs(job.out, config, kept, expand_outputs(recipe, full, job.weights()))
    return {"parameters": config.parameters()}


EXPAND = Pass("expand", 3, Options, ("model", "source"), "masked", ("origin",), needs=needs)
