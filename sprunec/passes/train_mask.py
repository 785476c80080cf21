"""Learn what to keep: gates and weights together, under one budget or one per layer."""

from __future__ import annotations

from typing import Any

from sprunec.engines.loop import fit, language_model_loss
from sprunec.engines.training import Training
from sprunec.families.model_directory import read_kept, save_model
from sprunec.masks.budgets import make_budgets, shared_out
from sprunec.masks.criteria import CRITERIA, Sight, comparable
from sprunec.masks.lagrangian import Lagrangian
from sprunec.masks.learn import GateLearner, settling, start_from, tie
from sprunec.masks.mask_tensors import START, save_scores
from sprunec.masks.unit_counts import gate_units
from sprunec.passes.bench import config_of, engine_of, next_batches, open_data, open_lesson, open_model, traced
from sprunec.passes.job import Job
from sprunec.rewrite.gating import insert_gates


def run(job: Job) -> dict[str, Any]:
    engine, config, options = engine_of(job), config_of(job), job.options
    place = engine.place
    model = open_model(job.inputs["model"], place)
    data, first_step = open_data(job, config), options["first_step"]
    blocks = traced(model, config)
    gates = insert_gates(model, blocks, gate_units(options["unit"]))
    sight = Sight(model, gates, blocks, next_batches(job, config), language_model_loss, place, options["seed"])
    scores = engine.world.broadcast(CRITERIA[options["criterion"]](sight))
    tied = options["tie_heads"]
    budgets = make_budgets(config, options["unit"], options["target"], options["budget"], tied)
    allocating = comparable(scores, options["target"])
    inside = shared_out(budgets, allocating) if "allocation" in options else budgets
    learner = GateLearner(
        gates,
        start_from(tie(scores) if tied else scores),
        Lagrangian(inside, options["steps"], options["ramp"]),
        steps=options["steps"],
        rate=options["mask_learning_rate"],
        seed=options["seed"],
        device=place.device,
        tie_heads=tied,
        stop_when_settled=options.get("stop_when_settled", False),
    )
    lesson = open_lesson(job, model, place, blocks)
    last = fit(
        model,
        data.batch,
        Training.of(options),
        engine,
        first_step=first_step,
        report=job.report,
        learner=learner,
        saves=job.saves,
        auxiliary_loss=lesson.objective,
    )
    state = {name: tensor for name, tensor in engine.weights(model).items() if ".gates." not in name}
    if engine.world.rank != 0:
        return {}
    save_model(job.out, config, read_kept(job.inputs["model"]), state)
    save_scores(job.out, learner.log_alphas)
    if "allocation" in options:
        save_scores(job.out / START, allocating)
    rows = [settling(budget, learner.log_alphas) for budget in budgets]
    metrics = {"loss": last["loss"], "steps": last["step"], "undecided": learner.undecided(), "budgets": rows}
    metrics |= lesson.metrics(last) | {"planned_steps": last["steps"]}
    notes = [*metrics.get("notes", []), *learner.convergence.ending(last["step"], learner.expected())]
    return metrics | ({"notes": notes} if notes else {})
