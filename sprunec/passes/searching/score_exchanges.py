"""Measure what a little more or less of each sublayer does to a solution of a search, cut and refitted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from sprunec.graph.arithmetic import by_block, forward
from sprunec.graph.builder import Builder
from sprunec.graph.choice_needs import choices_measured
from sprunec.graph.graph import Node
from sprunec.graph.needs import SINGLE, Needs
from sprunec.passes.job import Job
from sprunec.passes.score_choices import ChoiceOptions, inside, measure_choices, measuring, room, stage, unseen_batches
from sprunec.plan.declared import Pass, PassSpec
from sprunec.plan.search.local_search import near, taken_by

STAGES = ("cut", "dense", "gradients", "choices")


@dataclass(frozen=True, kw_only=True)
class ExchangeOptions(ChoiceOptions):
    """As of all choices; `number`: how many times solutions have been looked at before, each time on other text."""

    number: int


def add(build: Builder, spec: PassSpec, inputs: dict[str, str], number: int, suffix: str) -> str:
    """Add the node that measures the choices near a solution -> its name; its artifact is `damages_file.Damages`.

    Args:
        inputs: the cut model, its masks and the damages that it was found by.
    """
    options = build.options(ExchangeOptions, spec, precision="fp32", number=number)
    inputs = {"dense": build.model, "data": build.data, **inputs}
    return build.add("score-exchanges", options, inputs, suffix, about="changes of the divergence")


def needs(build: Builder, node: Node) -> Needs:
    """Go through the cut model as through the dense one for all choices, and once through that."""
    model, options = build.sizes[node.inputs["dense"]], node.options
    how = measuring(model.config, options)
    found = choices_measured(model, replace(how, samples=1 + options.samples), build.keep)
    dense = by_block(model, how.text, forward(model, how.text), keep=build.keep)
    memory = {**found.memory, "states": found.memory["states"] + dense.memory["states"]}
    operations = {**found.operations, SINGLE: found.operations[SINGLE] + dense.operations[SINGLE]}
    return replace(found, memory=memory, reads=found.reads + dense.reads, operations=operations, opened=2)


def run(job: Job[ExchangeOptions]) -> dict[str, Any]:
    from sprunec.masks.search.choice_damages import ChoiceDamages
    from sprunec.masks.search.damages_file import EXCHANGE, Damages, load_damages, save_damages
    from sprunec.masks.search.exchanges import Exchanges
    from sprunec.masks.search.walked import Walked
    from sprunec.models.meta_models import empty_model, traced_shape

    options, config, scored = job.options, job.config(), load_damages(job.inputs["damages"])
    listed = [choice for choice, _ in scored.choices]
    taken = taken_by(job.left(), listed)
    listed, model, blocks = near(listed, taken), job.mask(empty_model(config)), traced_shape(config)
    fitted = list(job.batches(config))
    batches, asked = unseen_batches(job, fitted, options.number)
    stages = [stage(job, name, number, len(STAGES)) for number, name in enumerate(STAGES)]
    dense = replace(stages[1], inputs={**job.inputs, "model": job.inputs["dense"]})
    measure = Exchanges(
        Walked(stages[0].block_by_block(model, batches), asked, room(job, "front", len(blocks))),
        Walked(dense.block_by_block(empty_model(config), batches), asked, ()),
        job.weights("dense"),
        inside(job, blocks),
        room(job, "moving", 1)[0],
        options.samples,
        options.seed + options.number,
    )
    many = Counter((choice.layer, choice.sublayer) for choice in listed)
    known = {number: 0.0 for number, choice in enumerate(listed) if many[choice.layer, choice.sublayer] == 1}
    found = ChoiceDamages(config, listed, scored.scores, known, options.units, {}, options.ridge, taken.values())
    measure_choices(found, measure, stages, stages[-1].block_by_block(model, fitted), blocks)
    rows = tuple((choice, found.damages[number]) for number, choice in enumerate(listed))
    tokens = sum(int(some.sum()) for some in asked)
    save_damages(job.out, Damages(EXCHANGE, tokens, scored.scores, rows))
    return {"choices": len(rows), "tokens": tokens}


SCORE_EXCHANGES = Pass(
    "score-exchanges",
    1,
    ExchangeOptions,
    ("model", "dense", "masks", "damages", "data"),
    "damages",
    needs=needs,
    needs_trained=True,
    by_block=True,
)
