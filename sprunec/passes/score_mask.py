"""Score units without training: at random, by their weights, or on calibration batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sprunec.passes import binarize, compensate, cut
from sprunec.passes.job import Batching, Calibration, Job, Masking
from sprunec.plan.pass_table import Pass
from sprunec.plan.resolve import LOOKING

if TYPE_CHECKING:
    from torch import Tensor

    from sprunec.graph.builder import Builder
    from sprunec.masks.unit_counts import Key
    from sprunec.plan.plan import PassSpec


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(Masking, Batching):
    criterion: str


@dataclass(frozen=True, kw_only=True)
class CalibratedOptions(ScoreOptions, Calibration):
    """Of a criterion that looks at data."""


def lower(build: Builder, spec: PassSpec) -> None:
    criterion, inputs = spec.options["criterion"], {"model": build.model}
    kind = CalibratedOptions if criterion in LOOKING else ScoreOptions
    inputs |= build.data_inputs() if criterion in LOOKING else {}
    options = build.options(kind, spec)
    about = f"{criterion}: {binarize.target_words(spec)}"
    name = build.add("score-mask", options, inputs, suffix="-".join(options.unit), about=about)
    masks = binarize.add(build, spec, name)
    compensate.add(build, spec, masks)
    cut.add(build, masks, spec)


def run(job: Job[ScoreOptions]) -> dict[str, Any]:
    from sprunec.masks.criteria import comparable
    from sprunec.masks.mask_tensors import save_scores

    scores = comparable(_by_data(job) if "data" in job.inputs else _by_weights(job), job.options.target)
    save_scores(job.out, scores)
    return {"criterion": job.options.criterion, "units": sum(value.numel() for value in scores.values())}


def _by_weights(job: Job[ScoreOptions]) -> dict[Key, Tensor]:
    """One tensor at a time, so that a checkpoint of any size can be scored."""
    from sprunec.masks.criteria import BLIND, Shapes
    from sprunec.masks.unit_counts import unit_sizes
    from sprunec.rewrite.trace import traced_shape

    config, options = job.config(), job.options
    sizes = unit_sizes(config, options.unit)
    return BLIND[options.criterion](Shapes(traced_shape(config), sizes, job.weights(), options.seed))


def _by_data(job: Job[ScoreOptions]) -> dict[Key, Tensor]:
    from sprunec.engines.loop import language_model_loss
    from sprunec.masks.criteria import CRITERIA, Sight
    from sprunec.masks.unit_counts import gate_units
    from sprunec.rewrite.gating import insert_gates

    config, model, options = job.config(), job.model(), job.options
    blocks = job.traced(model)
    gates = insert_gates(model, blocks, gate_units(options.unit))
    sight = Sight(model, gates, blocks, job.batches(config), language_model_loss, job.place, options.seed)
    return CRITERIA[options.criterion](sight)


SCORE_MASK = Pass(
    "score-mask", 2, ScoreOptions, ("model",), "scores", ("data",), lower, removes="units", needs_trained=True
)
