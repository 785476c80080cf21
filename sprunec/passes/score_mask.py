"""Score units without training: at random, by their weights, or by a look at the data."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sprunec.engines.loop import language_model_loss
from sprunec.families.model_directory import open_model_tensors
from sprunec.masks.criteria import BLIND, CRITERIA, Shapes, Sight, comparable
from sprunec.masks.mask_tensors import save_scores
from sprunec.masks.unit_counts import Key, gate_units, unit_sizes
from sprunec.passes.bench import config_of, next_batches, open_model, place_of, traced, traced_shape
from sprunec.passes.job import Job
from sprunec.rewrite.gating import insert_gates


def run(job: Job) -> dict[str, Any]:
    scores = comparable(_by_data(job) if "data" in job.inputs else _by_weights(job), job.options["target"])
    save_scores(job.out, scores)
    return {"criterion": job.options["criterion"], "units": sum(value.numel() for value in scores.values())}


def _by_weights(job: Job) -> dict[Key, Tensor]:
    """One tensor at a time, so that a checkpoint of any size can be scored."""
    config, options = config_of(job), job.options
    sizes, weights = unit_sizes(config, options["unit"]), open_model_tensors(job.inputs["model"])
    return BLIND[options["criterion"]](Shapes(traced_shape(config), sizes, weights, options["seed"]))


def _by_data(job: Job) -> dict[Key, Tensor]:
    place, config, options = place_of(job), config_of(job), job.options
    model = open_model(job.inputs["model"], place)
    blocks = traced(model, config)
    gates = insert_gates(model, blocks, gate_units(options["unit"]))
    batches = next_batches(job, config)
    sight = Sight(model, gates, blocks, batches, language_model_loss, place, options["seed"])
    return CRITERIA[options["criterion"]](sight)
