"""Measure a model on held-out text: loss, perplexity, and a line of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sprunec.errors import PassError
from sprunec.graph.options import BatchOptions
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass

if TYPE_CHECKING:
    from torch import nn

    from sprunec.data.batches import Data
    from sprunec.engines.device import Place
    from sprunec.families.base_config import ModelConfig
    from sprunec.graph.builder import Builder

SAMPLE_PROMPT, SAMPLE_LENGTH, SAMPLE_TEMPERATURE = 48, 80, 0.7


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(BatchOptions):
    """On how many tokens at most; None: on all that are held out."""

    tokens: int | None
    precision: str


def add(build: Builder, suffix: str, model: str, masks: str = "") -> str:
    """Add a node that measures a node's model, masked if there are masks."""
    options = build.options(EvaluateOptions, tokens=build.plan.evaluate_tokens)
    inputs = {"model": model} | ({"masks": masks} if masks else {}) | build.data_inputs()
    return build.add("evaluate", options, inputs, suffix=suffix, about="held-out loss")


def run(job: Job[EvaluateOptions]) -> dict[str, Any]:
    """Raise PassError where the loss is not finite: what the model says is then nothing to draw tokens from."""
    place, config, model = job.place, job.config(), job.model()
    data = job.data(config)
    if "masks" in job.inputs:
        job.mask(model)
    loss, tokens = _held_out_loss(model, data, job.options.tokens, place)
    if not math.isfinite(loss):
        dtype = str(place.dtype).removeprefix("torch.")
        message = f"the held-out loss is {loss}: numbers that the weights lead to are too large for {dtype}"
        raise PassError(f"{message}; fix the checkpoint, or give a wider engine.precision")
    sample = None if "masks" in job.inputs else _sample(model, config, data, job.options.seed, place)
    size, perplexity = config.parameters(), math.exp(min(loss, 700.0))
    return {"parameters": size, "loss": loss, "perplexity": perplexity, "tokens": tokens, "sample": sample}


def _held_out_loss(model: nn.Module, data: Data, limit: int | None, place: Place) -> tuple[float, int]:
    """Measure nats per target; count targets."""
    import torch

    from sprunec.engines.loop import language_model_loss

    model.eval()
    total, tokens = 0.0, 0
    for batch in (batch.to(place.device) for batch in data.held_out_batches(limit)):
        with torch.no_grad(), place.precision():
            total += float(language_model_loss(model, batch))
        tokens += batch.target_count
    return total / tokens, tokens


def _sample(model: Any, config: ModelConfig, data: Data, seed: int, place: Place) -> str | None:
    """Let the model write after the first held-out tokens, where the data can say it in text."""
    import torch

    from sprunec.families.base import family_of

    start = data.sample(SAMPLE_PROMPT)
    if start is None:
        return None
    given = family_of(config).proceed(config, start.document)
    given["input"] = given["input"].to(place.device)
    given |= {"generator": torch.Generator(place.device).manual_seed(seed), "stop": start.stop}
    with place.precision():
        ids = model.eval().generate(**given, max_new_tokens=SAMPLE_LENGTH, temperature=SAMPLE_TEMPERATURE)
    return data.decode(ids[0].tolist())


EVALUATE = Pass("evaluate", 2, EvaluateOptions, ("model", "data"), "measures", ("masks",))
