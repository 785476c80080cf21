"""Measure a model on held-out text: loss, perplexity, and a line of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from sprunec.data.batches import Data
from sprunec.engines.device import Place
from sprunec.engines.loop import language_model_loss
from sprunec.errors import PassError
from sprunec.families.base import Layout, family_of
from sprunec.families.cpm_ant.config import local
from sprunec.families.model_directory import read_config, read_kept
from sprunec.passes.bench import directory_of, open_data, open_model, place_of, traced
from sprunec.passes.job import Job
from sprunec.rewrite.gating import mask

SAMPLE_PROMPT, SAMPLE_LENGTH, SAMPLE_TEMPERATURE = 48, 80, 0.7


def run(job: Job) -> dict[str, Any]:
    """Raises PassError where the loss is not finite: what the model says is then nothing to draw tokens from."""
    place, directory = place_of(job), directory_of(job)
    config = read_config(directory)
    model, data = open_model(directory, place), open_data(job, config)
    if "masks" in job.inputs:
        kept = zip(read_kept(directory), read_kept(job.inputs["masks"]), strict=True)
        mask(model, traced(model, config), [local(before, after) for before, after in kept])
    loss, tokens = _held_out_loss(model, data, job.options["tokens"], place)
    if not math.isfinite(loss):
        dtype = str(place.dtype).removeprefix("torch.")
        message = f"the held-out loss is {loss}: numbers that the weights lead to are too large for {dtype}"
        raise PassError(f"{message}; fix the checkpoint, or give a wider engine.precision")
    layout, seed = family_of(config).layout(config), job.options["seed"]
    sample = None if "masks" in job.inputs else _sample(model, layout, data, seed, place)
    return {
        "parameters": config.parameters(),
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "tokens": tokens,
        "sample": sample,
    }


@torch.no_grad()
def _held_out_loss(model: nn.Module, data: Data, limit: int | None, place: Place) -> tuple[float, int]:
    """Nats per target, and targets."""
    model.eval()
    total, tokens = 0.0, 0
    for batch in data.held_out_batches(limit):
        batch = batch.to(place.device)
        with place.precision():
            total += float(language_model_loss(model, batch))
        tokens += batch.target_count
    return total / tokens, tokens


def _sample(model: Any, layout: Layout, data: Data, seed: int, place: Place) -> str | None:
    """What the model writes after the first held-out tokens, where the data can say it in text."""
    start = data.sample(SAMPLE_PROMPT)
    if start is None:
        return None
    given = layout.prompted(start.document)
    given["input"] = given["input"].to(place.device)
    given |= {"generator": torch.Generator(place.device).manual_seed(seed), "stop": start.stop}
    with place.precision():
        ids = model.eval().generate(**given, max_new_tokens=SAMPLE_LENGTH, temperature=SAMPLE_TEMPERATURE)
    return data.decode(ids[0].tolist())
