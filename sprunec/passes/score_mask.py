"""Score units without training: at random, by their weights, or on calibration batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sprunec.graph.options import BatchOptions, CalibrationOptions, MaskOptions
from sprunec.passes import binarize, compensate, cut
from sprunec.passes.job import Job
from sprunec.plan.declared import CRITERIA, Pass, calibrates
from sprunec.units import gate_units

if TYPE_CHECKING:
    from sprunec.graph.builder import Builder
    from sprunec.plan.declared import PassSpec


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(MaskOptions, BatchOptions):
    criterion: str


@dataclass(frozen=True, kw_only=True)
class CalibratedOptions(ScoreOptions, CalibrationOptions):
    """Of a criterion that looks at data."""


def lower(build: Builder, spec: PassSpec) -> None:
    criterion, inputs = spec.options["criterion"], {"model": build.model}
    kind = CalibratedOptions if calibrates(criterion) else ScoreOptions
    inputs |= build.data_inputs() if calibrates(criterion) else {}
    options = build.options(kind, spec)
    about = f"{criterion}: {binarize.target_words(spec)}"
    name = build.add("score-mask", options, inputs, suffix="-".join(options.unit), about=about)
    masks = binarize.add(build, spec, name)
    compensate.add(build, spec, masks)
    cut.add(build, masks, spec)


def run(job: Job[ScoreOptions]) -> dict[str, Any]:
    from sprunec.engines.loop import language_model_loss
    from sprunec.families.base_config import unit_sizes
    from sprunec.masks.mask_tensors import save_scores
    from sprunec.masks.scores import Calibration, Weights, comparable
    from sprunec.rewrite.gating import insert_gates
    from sprunec.rewrite.trace import traced_shape

    config, options = job.config(), job.options
    given: Calibration | Weights
    if "data" in job.inputs:
        model = job.model()
        blocks = job.traced(model)
        gates = insert_gates(model, blocks, gate_units(options.unit))
        given = Calibration(model, gates, blocks, job.batches(config), language_model_loss, job.place, options.seed)
    else:  # with one tensor at a time in memory, so that a checkpoint of any size can be scored
        given = Weights(traced_shape(config), unit_sizes(config, options.unit), job.weights(), options.seed)
    scores = comparable(CRITERIA[options.criterion].score(given), options.target)
    save_scores(job.out, scores)
    return {"criterion": options.criterion, "units": sum(value.numel() for value in scores.values())}


SCORE_MASK = Pass(
    "score-mask", 2, ScoreOptions, ("model",), "scores", ("data",), lower, removes="units", needs_trained=True
)
