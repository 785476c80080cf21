"""How fast the dense, the masked and the small model are, measured together.

On one batch they run in turn, A B C A B C: whatever else the machine does meanwhile slows all of them, so that the
ratio within a round means something where speeds of different minutes do not. Weights do not matter for time, so the
masked model runs on the dense one's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sprunec.families.base_config import FORWARD
from sprunec.graph.arithmetic import Text, raced
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.needs import Needs
from sprunec.graph.options import BatchOptions
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass

if TYPE_CHECKING:
    from torch import nn

    from sprunec.data.batches import Batch
    from sprunec.engines.device import Place
    from sprunec.families.base_config import ModelConfig

OPERATIONS = {"cpu": 1e10}  # of one forward of the dense model, which decides how large the batch is
OPERATIONS_ELSEWHERE = 2e13
LEAST_TEXT = 32
LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 5, 25, 4.0
BYTES = 4


@dataclass(frozen=True, kw_only=True)
class SpeedOptions(BatchOptions):
    """In what precision."""

    precision: str


def add(build: Builder, models: Mapping[str, str], masks: str) -> None:
    """Add one node for all models that were evaluated: speeds are compared only if measured together."""
    inputs = {**models, "masks": masks if "masked" in models else "", "data": build.data}
    about = f"{', '.join(models)} interleaved" if len(models) > 1 else "tokens per second"
    build.add("measure-speed", build.options(SpeedOptions), inputs, about=about)


def needs(build: Builder, node: Node) -> Needs:
    """Open the models, and run each in turn on a batch of so many operations, until some seconds are over."""
    models = [build.sizes[node.inputs[role]] for role in ("dense", "small") if role in node.inputs]
    rows, width = _affordable(node.options.batch_size, node.options.max_length, models[0].config, OPERATIONS["cpu"])
    text = Text(rows, width)
    return raced(models, text, len(models) * OPERATIONS["cpu"], SECONDS)  # and the round that does not count


def run(job: Job[SpeedOptions]) -> dict[str, Any]:
    place, configs = job.place, {role: job.config(role) for role in ("dense", "masked", "small") if role in job.inputs}
    held = sum(config.parameters() for role, config in configs.items() if role != "masked")
    if BYTES * held > place.memory(1):
        note = f"speeds were not measured: {place.device} has no room for the dense and the small model together"
        return {"rounds": 0, "tokens": 0, "models": {}, "notes": [note]}
    batch = smaller(next(job.data(configs["dense"]).held_out_batches()), configs["dense"], place)
    seconds = in_turn(_models(job, configs), batch.to(place.device), place)
    tokens = int((batch.inputs["length"] - configs["dense"].overhead).sum())
    models = {role: measured(tokens, spent, seconds["dense"], role == "dense") for role, spent in seconds.items()}
    return {"rounds": len(seconds["dense"]), "tokens": tokens, "models": models}


def _models(job: Job[SpeedOptions], configs: Mapping[str, ModelConfig]) -> dict[str, nn.Module]:
    """Open all models; the masked one has the dense one's tensors, not a copy, where their shapes are the same."""
    from sprunec.families.model_directory import fill
    from sprunec.models.meta_models import empty_model

    models: dict[str, nn.Module] = {}
    for role, config in configs.items():
        if role == "masked" and config == configs["dense"]:
            models[role] = empty_model(config)
            fill(models[role], models["dense"].state_dict(), job.inputs["dense"])
        else:
            models[role] = job.model(role)
    if "masked" in models:
        job.mask(models["masked"], "masked")
    return {role: model.eval() for role, model in models.items()}


def smaller(batch: Batch, config: ModelConfig, place: Place) -> Batch:
    """Take as many rows as the operations of one forward allow, of a large model one row cut short, not too short."""
    rows, width = batch.targets.shape
    rows, width = _affordable(rows, width, config, OPERATIONS.get(place.device.type, OPERATIONS_ELSEWHERE))
    return batch.part(slice(rows), width)


def _affordable(rows: int, width: int, config: ModelConfig, operations: float) -> tuple[int, int]:
    """Tell how many rows of a batch, and of what width, take so many operations."""
    allowed = int(operations / (FORWARD * config.parameters()))
    width = min(width, max(allowed, config.overhead + LEAST_TEXT))
    return min(rows, max(allowed // width, 1)), width


def in_turn(models: Mapping[str, nn.Module], batch: Batch, place: Place) -> dict[str, list[float]]:
    """Time every model in every round, in seconds, after a round that does not count."""
    import torch

    seconds: dict[str, list[float]] = {role: [] for role in models}
    started = perf_counter()
    for count in range(MOST_ROUNDS + 1):
        if count > LEAST_ROUNDS and perf_counter() - started > SECONDS:
            break
        for role, model in models.items():
            began = perf_counter()
            with torch.no_grad(), place.precision():
                logits, _ = model(**batch.inputs)
            float(logits[0, -1, 0])  # on every device, a number is there only once the work is done
            seconds[role].append(perf_counter() - began)
    return {role: spent[1:] for role, spent in seconds.items()}


def measured(tokens: int, seconds: Sequence[float], dense: Sequence[float], is_dense: bool) -> dict[str, Any]:
    """Give medians and quartiles over the rounds: tokens per second, and how many times the dense model's that is."""
    slowest, speed, fastest = quantiles([tokens / spent for spent in seconds], n=4, method="inclusive")
    ratios = [slow / spent for slow, spent in zip(dense, seconds, strict=True)]
    low, ratio, high = quantiles(ratios, n=4, method="inclusive")
    relative = None if is_dense else {"ratio": ratio, "low": low, "high": high}
    return {"tokens_per_second": speed, "tokens_per_second_spread": [slowest, fastest], "relative_speed": relative}


def report(document: dict[str, Any], node: Node, metrics: Mapping[str, Any]) -> None:
    """Put speeds beside what evaluations have measured."""
    for role, speeds in metrics["models"].items():
        document["models"][role] |= speeds


MEASURE_SPEED = Pass(
    "measure-speed",
    1,
    SpeedOptions,
    ("dense", "data"),
    "measures",
    ("masked", "masks", "small"),
    needs=needs,
    report=report,
)
