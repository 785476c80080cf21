"""Train all weights of a model: dense, or fine-tuning what a rewrite has left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sprunec.engines.loop import fit
from sprunec.engines.training import Training
from sprunec.errors import PassError
from sprunec.families.model_directory import read_kept, save_model
from sprunec.masks.two_four import Pattern, density, leaks, load_pattern, save_pattern
from sprunec.passes.bench import config_of, engine_of, open_data, open_lesson, open_model
from sprunec.passes.job import Job


def run(job: Job) -> dict[str, Any]:
    engine, config = engine_of(job), config_of(job)
    model = open_model(job.inputs["model"], engine.place)
    data, lesson = open_data(job, config), open_lesson(job, model, engine.place)
    pattern = load_pattern(job.inputs["model"])
    last = fit(
        model,
        data.batch,
        Training.of(job.options),
        engine,
        first_step=job.options["first_step"],
        report=job.report,
        saves=job.saves,
        auxiliary_loss=lesson.objective,
        kept=pattern,
    )
    state = engine.weights(model)
    if engine.world.rank != 0:
        return {}
    save_model(job.out, config, read_kept(job.inputs["model"]), state)
    metrics = {"loss": last["loss"], "steps": last["steps"], "parameters": config.parameters()}
    return metrics | lesson.metrics(last) | _keep_pattern(job, state, pattern)


def _keep_pattern(job: Job, state: Mapping[str, Tensor], pattern: Pattern) -> dict[str, Any]:
    """Hand the pattern on, once it is sure that it has held."""
    if not pattern:
        return {}
    moved = leaks(state, pattern)
    if moved:
        raise PassError(f"{moved[0]} is not zero where its 2:4 pattern says so")
    save_pattern(job.out, pattern)
    return {"density": density(state, pattern)}
