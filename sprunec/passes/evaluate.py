"""Measure a model on held-out text: loss, perplexity, and a line of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sprunec.errors import PassError
from sprunec.families.base import family_of
from sprunec.graph.builder import Builder
from sprunec.graph.options import BatchOptions
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass

if TYPE_CHECKING:
    from sprunec.data.batches import Data

SAMPLE_PROMPT, SAMPLE_LENGTH, SAMPLE_TEMPERATURE = 48, 80, 0.7


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(BatchOptions):
    """On how many tokens at most; None: on all that are held out."""

    tokens: int | None
    precision: str


def add(build: Builder, suffix: str, model: str, masks: str = "") -> str:
    """Add a node that measures a node's model, masked if there are masks."""
    options = build.options(EvaluateOptions, tokens=build.plan.evaluate_tokens)
    inputs = {"model": model, "masks": masks, "data": build.data}
    return build.add("evaluate", options, inputs, suffix, about="held-out loss")


def run(job: Job[EvaluateOptions]) -> dict[str, Any]:
    """Raise PassError where the loss is not finite: what the model says is then nothing to draw tokens from."""
    import torch

    from sprunec.engines.loop import language_model_loss

    place, config, model, total, tokens = job.place, job.config(), job.model(), 0.0, 0
    data = job.data(config)
    if "masks" in job.inputs:
        job.mask(model)
    model.eval()
    for batch in (batch.to(place.device) for batch in data.held_out_batches(job.options.tokens)):
        with torch.no_grad(), place.precision():
            total += float(language_model_loss(model, batch))
        tokens += batch.target_count
    if not math.isfinite(loss := total / tokens):
        dtype = str(place.dtype).removeprefix("torch.")
        message = f"the held-out loss is {loss}: numbers that the weights lead to are too large for {dtype}"
        raise PassError(f"{message}; fix the checkpoint, or give a wider engine.precision")
    sample = None if "masks" in job.inputs else _sample(job, model, data)
    size, perplexity = config.parameters(), math.exp(min(loss, 700.0))
    return {"parameters": size, "loss": loss, "perplexity": perplexity, "tokens": tokens, "sample": sample}


def _sample(job: Job[EvaluateOptions], model: Any, data: Data) -> str | None:
    """Let the model write after the first held-out tokens, where the data can say it in text."""
    import torch

    if (start := data.sample(SAMPLE_PROMPT)) is None:
        return None
    place, config = job.place, job.config()
    given = family_of(config).proceed(config, start.document)
    given["input"] = given["input"].to(place.device)
    given |= {"generator": torch.Generator(place.device).manual_seed(job.options.seed), "stop": start.stop}
    with place.precision():
        ids = model.generate(**given, max_new_tokens=SAMPLE_LENGTH, temperature=SAMPLE_TEMPERATURE)
    return data.decode(ids[0].tolist())


EVALUATE = Pass("evaluate", 2, EvaluateOptions, ("model", "data"), "measures", ("masks",))
