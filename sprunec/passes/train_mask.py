"""Learn what to keep: gates and weights together, under one budget or one per layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sprunec.graph.options import CalibrationOptions, MaskOptions
from sprunec.passes import binarize, compensate, cut, train
from sprunec.passes.job import Job
from sprunec.passes.train import INPUTS, TEACHER, TrainOptions, distiller_of, engine_of, fit_weights
from sprunec.plan.declared import CRITERIA, Pass
from sprunec.units import gate_units

if TYPE_CHECKING:
    from sprunec.graph.builder import Builder
    from sprunec.plan.declared import PassSpec


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
    about = binarize.target_words(spec, target)
    name = train.add(build, spec, options, about, "-".join(options.unit))
    build.model = name if spec.options["weights"] == "trained" else given
    masks = binarize.add(build, spec, name)
    compensate.add(build, spec, masks, name)
    cut.add(build, masks, spec)


def run(job: Job[GateOptions]) -> dict[str, Any]:
    from sprunec.engines.loop import language_model_loss
    from sprunec.masks.budgets import allocated, make_budgets
    from sprunec.masks.lagrangian import Lagrangian
    from sprunec.masks.learn import GateLearner, settling, start_from, tie
    from sprunec.masks.mask_tensors import START, save_scores
    from sprunec.masks.scores import Calibration, comparable
    from sprunec.rewrite.gating import insert_gates

    engine, config, options, model = engine_of(job), job.config(), job.options, job.model()
    place, blocks = engine.place, job.traced(model)
    gates = insert_gates(model, blocks, gate_units(options.unit))
    given = Calibration(model, gates, blocks, job.batches(config), language_model_loss, place, options.seed)
    scores = engine.world.broadcast(CRITERIA[options.criterion].score(given))
    budgets = make_budgets(config, options.unit, options.target, options.budget, options.tie_heads)
    allocating = comparable(scores, options.target)
    learner = GateLearner(
        gates,
        start_from(tie(scores) if options.tie_heads else scores),
        Lagrangian(allocated(budgets, allocating) if options.allocation else budgets, options.steps, options.ramp),
        steps=options.steps,
        rate=options.mask_learning_rate,
        seed=options.seed,
        device=place.device,
        tie_heads=options.tie_heads,
        stop_when_settled=options.stop_when_settled,
    )
    distiller, notes = distiller_of(job, model, blocks)
    last, state = fit_weights(job, engine, model, distiller, learner=learner)
    if engine.world.rank != 0:
        return {}
    job.save({name: tensor for name, tensor in state.items() if ".gates." not in name})
    save_scores(job.out, learner.log_alphas)
    if options.allocation:
        save_scores(job.out / START, allocating)
    rows = [settling(budget, learner.log_alphas) for budget in budgets]
    metrics = {"loss": last["loss"], "steps": last["step"], "undecided": learner.undecided(), "budgets": rows}
    metrics |= {"distillation": last["distillation"]} if distiller is not None else {}
    metrics["planned_steps"] = last["steps"]
    notes += learner.convergence.ending(last["step"], learner.expected())
    return metrics | ({"notes": notes} if notes else {})


TRAIN_MASK = Pass(
    "train-mask", 5, GateOptions, INPUTS, "gated", TEACHER, lower, trains=True, removes="units", needs_trained=True
)
