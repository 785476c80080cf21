"""Whether an engine can train what a plan asks for: told before any work, not by the engine halfway."""

from __future__ import annotations

from collections.abc import Iterator

from sprunec.errors import Diagnostic
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.plan.pass_table import PASSES, trains
from sprunec.plan.resolve import Draft, Step

OTHER = 'or write "name": "torch"'


def engine_fits(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """BMTrain works on CUDA, holds no patterns, trains no projections, and has only Adam on the CPU."""
    engine = draft.section("engine")
    if engine.get("name") != "bmtrain":
        return
    device = str(engine.get("device", "auto"))
    if device != "auto" and not device.startswith("cuda"):
        message = f"bmtrain works on CUDA alone, not on {device}"
        yield draft.source.find("engine-cannot", "/engine/device", message, f'write "cuda", {OTHER}')
    sparse = False
    for step in draft.steps:
        sparse = sparse or (step.name in PASSES and PASSES[step.name].removes == "weights")
        if trains(step.name) and step.options is not None:
            yield from _pass_fits(draft, step, sparse=sparse, offload=bool(engine.get("offload")))


def _pass_fits(draft: Draft, step: Step, *, sparse: bool, offload: bool) -> Iterator[Diagnostic]:
    options = step.options or {}
    if sparse:
        message = "bmtrain does not hold the zeros of sparsify while it trains"
        yield draft.source.find("engine-cannot", step.pointer, message, f"sparsify last, {OTHER}")
    if (options["distillation"] or {}).get("project"):
        message = "bmtrain does not train the projections of a distillation"
        yield draft.source.find("engine-cannot", step.pointer, message, f'write "project": false, {OTHER}')
    if offload and options["optimizer"] != "adam":
        message = f"bmtrain has no {options['optimizer']} that works on the CPU, which offload asks for"
        yield draft.source.find("engine-cannot", step.pointer, message, f'write "optimizer": "adam", {OTHER}')
