"""Hold the traced blocks of a library's model against their modules, on its own weights and on the plan's text.

Everything after this runs the graphs, and what is emitted is opened as the modules. A block of each kind is compared.
That they agree on weights and inputs drawn at random is seen wherever they are traced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sprunec.families.base import family_of
from sprunec.families.cards import card_of
from sprunec.graph.arithmetic import verified
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.needs import Needs
from sprunec.graph.options import BatchOptions
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass

TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(BatchOptions):
    """Which release of the library has the modules."""

    library: str


def add(build: Builder, model: str) -> None:
    """Add a node that looks at a node's model, where its code is a library's."""
    if release := card_of(build.config).code_release():
        inputs, about = {"model": model, "data": build.data}, "graphs = modules"
        build.add("verify-trace", build.options(VerifyOptions, library=release), inputs, about=about)


def needs(build: Builder, node: Node) -> Needs:
    return verified(build.sizes[node.inputs["model"]], TOKENS)


def run(job: Job[VerifyOptions]) -> dict[str, Any]:
    """Raise TraceError where a graph computes something else than its module."""
    import torch

    from sprunec.data.compared import compared_batches
    from sprunec.models.meta_models import empty_model, traced_whole
    from sprunec.models.streamed import Streamed
    from sprunec.models.verify import NOISE, verify_weights

    config, place = job.config(), job.place
    family = family_of(config)
    with torch.device("meta"):
        modules = family.build(config)
    batch = next(compared_batches(job.data(config) if "data" in job.inputs else None, config, TOKENS))[0]
    inputs = [batch.to(place.device).inputs]
    models, weights = (modules, empty_model(config)), job.weights()
    own, graphs = (Streamed(family, each, weights, inputs, torch.float32, place.device) for each in models)
    parts = verify_weights(traced_whole(config), own, graphs)
    tolerance = NOISE * torch.finfo(torch.float32).eps
    blocks = {str(index): part for index, part in parts.items()}
    tokens = graphs.used().size(0)
    return {"max_relative_difference": max(parts.values()), "tolerance": tolerance, "tokens": tokens, "blocks": blocks}


VERIFY_TRACE = Pass("verify-trace", 1, VerifyOptions, ("model",), "check", ("data",), needs=needs)
