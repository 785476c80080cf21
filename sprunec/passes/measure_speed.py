"""How fast the dense, the masked and the small model are, measured together.

On one batch they run in turn, A B C A B C: whatever else the machine does meanwhile slows all of them, so that the
ratio within a round means something where speeds of different minutes do not. Weights do not matter for time, so the
masked model runs on the dense one's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import quantiles
from time import perf_counter
from typing import Any

import torch
from torch import nn

from sprunec.data.batches import Batch
from sprunec.engines.device import Place
from sprunec.families.base import family_of
from sprunec.families.cpm_ant.config import ModelConfig, local
from sprunec.families.model_directory import empty_model, fill, read_config, read_kept
from sprunec.passes.bench import directory_of, open_data, open_model, place_of, traced
from sprunec.passes.job import Job
from sprunec.rewrite.gating import mask

OPERATIONS = {"cpu": 1e10}  # of one forward of the dense model, which decides how large the batch is
OPERATIONS_ELSEWHERE = 2e13
LEAST_TEXT = 32
LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 5, 25, 4.0
BYTES = 4


def run(job: Job) -> dict[str, Any]:
    place, roles = place_of(job), [role for role in ("dense", "masked", "small") if role in job.inputs]
    configs = {role: read_config(directory_of(job, role)) for role in roles}
    held = sum(config.parameters() for role, config in configs.items() if role != "masked")
    if BYTES * held > place.memory(1):
        note = f"speeds were not measured: {place.device} has no room for the dense and the small model together"
        return {"rounds": 0, "tokens": 0, "models": {}, "notes": [note]}
    batch = smaller(next(open_data(job, configs["dense"]).held_out_batches()), configs["dense"], place)
    seconds = in_turn(_models(job, configs, place), batch.to(place.device), place)
    tokens = int((batch.inputs["length"] - _overhead(configs["dense"])).sum())
    return {
        "rounds": len(seconds["dense"]),
        "tokens": tokens,
        "models": {role: measured(tokens, seconds[role], seconds["dense"], role == "dense") for role in roles},
    }


def _models(job: Job, configs: Mapping[str, ModelConfig], place: Place) -> dict[str, nn.Module]:
    """The masked model has the dense one's tensors, not a copy, where their shapes are the same."""
    models: dict[str, nn.Module] = {"dense": open_model(directory_of(job, "dense"), place)}
    if "masked" in configs:
        models["masked"] = _masked(job, configs["masked"], models["dense"], configs["dense"], place)
    if "small" in configs:
        models["small"] = open_model(directory_of(job, "small"), place)
    return {role: model.eval() for role, model in models.items()}


def _masked(job: Job, config: ModelConfig, dense: nn.Module, its: ModelConfig, place: Place) -> nn.Module:
    if config == its:
        model = empty_model(config)
        fill(model, dense.state_dict(), job.inputs["dense"])
    else:
        model = open_model(job.inputs["masked"], place)
    kept = zip(read_kept(job.inputs["masked"]), read_kept(job.inputs["masks"]), strict=True)
    return mask(model, traced(model, config), [local(before, after) for before, after in kept])


def smaller(batch: Batch, config: ModelConfig, place: Place) -> Batch:
    """As many rows as the operations of one forward allow, in a large model one row cut short, not too short."""
    rows, width = batch.targets.shape
    allowed = int(OPERATIONS.get(place.device.type, OPERATIONS_ELSEWHERE) / (2 * config.parameters()))
    width = min(width, max(allowed, _overhead(config) + LEAST_TEXT))
    return batch.part(slice(min(rows, max(allowed // width, 1))), width)


def _overhead(config: ModelConfig) -> int:
    return family_of(config).layout(config).overhead


@torch.no_grad()
def in_turn(models: Mapping[str, nn.Module], batch: Batch, place: Place) -> dict[str, list[float]]:
    """Seconds of every model in every round, after a round that does not count."""
    seconds: dict[str, list[float]] = {role: [] for role in models}
    started = perf_counter()
    for count in range(MOST_ROUNDS + 1):
        if count > LEAST_ROUNDS and perf_counter() - started > SECONDS:
            break
        for role, model in models.items():
            spent = _forward(model, batch, place)
            if count:
                seconds[role].append(spent)
    return seconds


def _forward(model: nn.Module, batch: Batch, place: Place) -> float:
    started = perf_counter()
    with place.precision():
        logits, _ = model(**batch.inputs)
    float(logits[0, -1, 0])  # on every device, a number is there only once the work is done
    return perf_counter() - started


def measured(tokens: int, seconds: Sequence[float], dense: Sequence[float], is_dense: bool) -> dict[str, Any]:
    """Medians and quartiles over the rounds: tokens per second, and how many times the dense model's in it."""
    slowest, speed, fastest = quantiles([tokens / spent for spent in seconds], n=4, method="inclusive")
    ratios = [slow / spent for slow, spent in zip(dense, seconds, strict=True)]
    low, ratio, high = quantiles(ratios, n=4, method="inclusive")
    return {
        "tokens_per_second": speed,
        "tokens_per_second_spread": [slowest, fastest],
        "relative_speed": None if is_dense else {"ratio": ratio, "low": low, "high": high},
    }
