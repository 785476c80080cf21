"""Score units without training: at random, by their weights, or on calibration batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sprunec.errors import series
from sprunec.graph.arithmetic import (
    Text,
    backward,
    by_block,
    by_tensor,
    forward,
    looking,
    projection_widths,
    solved,
    without_blocks,
)
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.needs import SINGLE, Needs
from sprunec.graph.options import BatchOptions, CalibrationOptions, MaskOptions
from sprunec.passes import binarize
from sprunec.passes.job import Job
from sprunec.plan.declared import CRITERIA, Pass, PassSpec, calibrates
from sprunec.plan.targets import blocks_dropped


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


def needs(build: Builder, node: Node) -> Needs:
    model, options, criterion = build.sizes[node.inputs["model"]], node.options, CRITERIA[node.options.criterion]
    if criterion.needs == "weights":
        return by_tensor(model)
    text = Text(options.sequences, options.max_length)
    if criterion.needs == "gradients":
        others = [each.name for each in CRITERIA.values() if each.needs in ("squares", "products")]
        return backward(model, text, options.batch_size, f"{series(others, 'and')} go block by block")
    if criterion.needs == "states":
        return looking(model, text, keep=build.keep)
    if criterion.needs == "losses":
        rounds = blocks_dropped(model.config, options.target) if criterion.again else 1
        return without_blocks(model, text, rounds, keep=build.keep)
    found = by_block(model, text, forward(model, text), keep=build.keep)
    if criterion.needs == "squares":
        return found
    return solved(found, model, text, projection_widths(model.config, options.unit), SINGLE)


def run(job: Job[ScoreOptions]) -> dict[str, Any]:
    from sprunec.masks.mask_tensors import save_scores
    from sprunec.masks.scores import comparable

    options = job.options
    scores = comparable(job.scores(CRITERIA[options.criterion], options.unit), options.target)
    save_scores(job.out, scores)
    return {"criterion": options.criterion, "units": sum(value.numel() for value in scores.values())}


SCORE_MASK = Pass(
    "score-mask",
    4,
    ScoreOptions,
    ("model",),
    "scores",
    ("data",),
    lower,
    needs=needs,
    removes="units",
    needs_trained=True,
    by_block=True,
)
