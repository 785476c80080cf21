"""Train all weights of a model: dense, or fine-tuning what a rewrite has left."""

from __future__ import annotations

from typing import Any

from sprunec.engines.loop import Training, fit
from sprunec.model.checkpoint import read_kept, save_model
from sprunec.passes.bench import config_of, open_data, open_model, place_of
from sprunec.passes.job import Job


def run(job: Job) -> dict[str, Any]:
    place, config = place_of(job), config_of(job)
    model = open_model(job.inputs["model"], place)
    data = open_data(job, config)
    last = fit(
        model,
        data.batch,
        Training.of(job.options),
        place,
        first_step=job.options["first_step"],
        report=job.report,
        saves=job.saves,
    )
    save_model(job.out, config, read_kept(job.inputs["model"]), model.state_dict())
    return {"loss": last["loss"], "steps": last["steps"], "parameters": config.parameters()}
