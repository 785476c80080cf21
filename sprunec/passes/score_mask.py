"""Score units without training: at random, by their weights, or by a look at the data."""

from __future__ import annotations

from typing import Any

from sprunec.engines.loop import language_model_loss
from sprunec.masks import criteria
from sprunec.masks.files import save_scores
from sprunec.masks.units import Key, gate_units, unit_sizes
from sprunec.passes.bench import config_of, open_data, open_model, place_of, traced
from sprunec.passes.job import Job
from sprunec.rewrite.gating import insert_gates


def run(job: Job) -> dict[str, Any]:
    scores = SCORERS[job.options["criterion"]](job)
    save_scores(job.out, scores)
    return {"criterion": job.options["criterion"], "units": sum(value.numel() for value in scores.values())}


def _random(job: Job) -> dict[Key, Any]:
    return criteria.random(unit_sizes(config_of(job), job.options["unit"]), job.options["seed"])


def _magnitude(job: Job) -> dict[Key, Any]:
    config = config_of(job)
    blocks = traced(open_model(job.inputs["model"], place_of(job)), config)
    return criteria.magnitude(blocks, unit_sizes(config, job.options["unit"]))


def _taylor(job: Job) -> dict[Key, Any]:
    place, config, options = place_of(job), config_of(job), job.options
    model, data = open_model(job.inputs["model"], place), open_data(job, config)
    gates = insert_gates(model, traced(model, config), gate_units(options["unit"]))
    batches = (data.batch(options["first_step"] + i) for i in range(options["batches"]))
    return criteria.taylor(model, gates, batches, language_model_loss, place)


SCORERS = {"random": _random, "magnitude": _magnitude, "taylor": _taylor}
