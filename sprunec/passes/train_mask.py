"""Learn what to keep: gates and weights together, under one budget or one per layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sprunec.graph.builder import Builder
from sprunec.graph.options import CalibrationOptions, MaskOptions
from sprunec.passes import binarize, train
from sprunec.passes.job import Job
from sprunec.passes.train import BESIDE, INPUTS, TEACHER, TrainOptions, engine_of, fit_model, loading
from sprunec.plan.declared import CRITERIA, Pass, PassSpec


@dataclass(frozen=True, kw_only=True)
class GateOptions(TrainOptions, CalibrationOptions, MaskOptions):
    """What gates learn, and where they start."""

    criterion: str
    mask_learning_rate: float
    ramp: float
    allocation: str = ""
    stop_when_settled: bool = False


def lower(build: Builder, spec: PassSpec) -> None:
    target, given = spec.options.get("gates_for", spec.options["target"]), build.model
    options = build.options(GateOptions, spec, target=target, allocation=binarize.allocation(spec))
    name = train.add(build, spec, options, binarize.target_words(spec, target), "-".join(options.unit))
    build.model = name if spec.options["weights"] == "trained" else given
    binarize.add(build, spec, name)


def run(job: Job[GateOptions]) -> dict[str, Any]:
    from sprunec.masks.budgets import allocated, make_budgets
    from sprunec.masks.lagrangian import Lagrangian
    from sprunec.masks.learn import GateLearner, settling, start_from, tie
    from sprunec.masks.mask_tensors import START, save_scores
    from sprunec.masks.scores import comparable

    engine, options = engine_of(job), job.options
    scoring = replace(job, saves=None, report=lambda event: None)  # what is saved and told is the training
    scores = engine.world.broadcast(scoring.scores(CRITERIA[options.criterion], options.unit, engine))
    config, given = job.config(), job.calibration(options.unit, loading(options, engine))
    budgets = make_budgets(config, options.unit, options.target, options.budget, options.tie_heads)
    allocating = comparable(scores, options.target)
    shared = allocated(config, budgets, allocating) if options.allocation else budgets
    learner = GateLearner(
        given.gates,
        start_from(tie(scores) if options.tie_heads else scores),
        Lagrangian(shared, options.steps, options.ramp),
        steps=options.steps,
        rate=options.mask_learning_rate,
        seed=options.seed,
        device=engine.place.device,
        tie_heads=options.tie_heads,
        stop_when_settled=options.stop_when_settled,
    )
    last, notes, state = fit_model(job, engine, given.model, given.blocks, learner=learner)
    job.save(state)
    if engine.world.rank != 0:
        return {}
    save_scores(job.out, learner.log_alphas)
    if options.allocation:
        save_scores(job.out / START, allocating)
    notes += learner.convergence.ending(last["step"], learner.expected())
    rows = settling(budgets, learner.log_alphas)
    metrics = {"loss": last["loss"], "steps": last["step"], "undecided": learner.undecided(), "budgets": rows}
    metrics |= {key: last[key] for key in BESIDE if key in last}
    return metrics | {"planned_steps": last["steps"]} | ({"notes": notes} if notes else {})


TRAIN_MASK = Pass(
    "train-mask",
    8,
    GateOptions,
    INPUTS,
    "gated",
    TEACHER,
    lower,
    needs=train.needs,
    trains=True,
    removes="units",
    needs_trained=True,
)
