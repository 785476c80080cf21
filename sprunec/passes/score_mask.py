"""Score units without training: at random, by their weights, or by a look at the data."""

from __future__ import annotations

from typing import Any

from sprunec.engines.loop import language_model_loss
from sprunec.masks.criteria import CRITERIA, Sight, comparable
from sprunec.masks.files import save_scores
from sprunec.masks.units import gate_units
from sprunec.passes.bench import config_of, next_batches, open_model, place_of, traced
from sprunec.passes.job import Job
from sprunec.rewrite.gating import insert_gates


def run(job: Job) -> dict[str, Any]:
    place, config, options = place_of(job), config_of(job), job.options
    model = open_model(job.inputs["model"], place)
    blocks = traced(model, config)
    gates = insert_gates(model, blocks, gate_units(options["unit"]))
    batches = next_batches(job, config) if "data" in job.inputs else iter(())
    sight = Sight(model, gates, blocks, batches, language_model_loss, place, options["seed"])
    scores = comparable(CRITERIA[options["criterion"]](sight), options["target"])
    save_scores(job.out, scores)
    return {"criterion": options["criterion"], "units": sum(value.numel() for value in scores.values())}
