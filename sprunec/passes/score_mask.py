"""Score units without training: at random, by their weights, or on calibration batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sprunec.graph.builder import Builder
from sprunec.graph.options import BatchOptions, CalibrationOptions, MaskOptions
from sprunec.passes import binarize
from sprunec.passes.job import Job
from sprunec.plan.declared import CRITERIA, Pass, PassSpec, calibrates


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(MaskOptions, BatchOptions):
    criterion: str


@dataclass(frozen=True, kw_only=True)
class CalibratedOptions(ScoreOptions, CalibrationOptions):
    """Of a criterion that looks at data."""


def lower(build: Builder, spec: PassSpec) -> None:
    criterion, calibrated = spec.options["criterion"], calibrates(spec.options["criterion"])
    options = build.options(CalibratedOptions if calibrated else ScoreOptions, spec)
    inputs = {"model": build.model, "data": build.data if calibrated else ""}
    about = f"{criterion}: {binarize.target_words(spec)}"
    binarize.add(build, spec, build.add("score-mask", options, inputs, "-".join(options.unit), about=about))


def run(job: Job[ScoreOptions]) -> dict[str, Any]:
    from sprunec.families.base_config import unit_sizes
    from sprunec.masks.mask_tensors import save_scores
    from sprunec.masks.scores import Weights, comparable
    from sprunec.models.meta_models import traced_shape
    from sprunec.rewrite.trace import check_cuttable

    options, criterion = job.options, CRITERIA[job.options.criterion]
    if isinstance(options, CalibratedOptions):
        given = job.calibration(options.unit)
        found = criterion.score(replace(given, batches=job.steps(given.batches, options.batches)))
    else:  # with one tensor at a time in memory, so that a checkpoint of any size can be scored
        blocks, sizes = traced_shape(job.config()), unit_sizes(job.config(), options.unit)
        check_cuttable(blocks, options.unit)
        found = criterion.score(Weights(blocks, sizes, job.weights(), options.seed))
    scores = comparable(found, options.target)
    save_scores(job.out, scores)
    return {"criterion": options.criterion, "units": sum(value.numel() for value in scores.values())}


SCORE_MASK = Pass(
    "score-mask", 2, ScoreOptions, ("model",), "scores", ("data",), lower, removes="units", needs_trained=True
)
