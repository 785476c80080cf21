"""Measure a model on held-out text: loss, perplexity, and what it writes itself.

What a plan calls by the name of this pass are tasks, see `evaluate_tasks`; held-out text it asks for in a section.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from sprunec.errors import PassError
from sprunec.families.base import family_of
from sprunec.families.base_config import FORWARD
from sprunec.graph.arithmetic import Text, by_block, forward
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.needs import DECODED, Needs
from sprunec.graph.options import BatchOptions
from sprunec.machine import physical_memory
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass, PassSpec
from sprunec.plan.scale import FLOAT

if TYPE_CHECKING:
    from sprunec.data.batches import Data

BEGINNINGS = (0.0, 1 / 3, 2 / 3)  # where they begin in what is held out
GIVEN_LENGTH, WRITTEN_LENGTH, TEMPERATURE = 48, 48, 0.7


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(BatchOptions):
    """On how many tokens at most; None: on all that are held out."""

    tokens: int | None
    precision: str


def lower(build: Builder, spec: PassSpec) -> None:
    """Note which tasks to run: that is done last."""
    build.evaluating.append(spec)


def add(build: Builder, suffix: str, model: str, masks: str = "") -> str:
    """Add a node that measures a node's model, masked if there are masks."""
    options = build.options(EvaluateOptions, tokens=build.plan.evaluate_tokens)
    inputs = {"model": model, "masks": masks, "data": build.data}
    return build.add("evaluate", options, inputs, suffix, about="held-out loss")


def needs(build: Builder, node: Node) -> Needs:
    """Run what is held out; how much that is is a guess where the plan gives no number of tokens."""
    model, length = build.sizes[node.inputs["model"]], node.options.max_length
    text = Text(math.ceil((node.options.tokens or build.held_out) / length), length)
    found, size = (
        by_block(model, text, forward(model, text, head=True), keep=build.keep, head=True),
        float(FLOAT) * model.parameters,
    )
    if "masks" in node.inputs or not _writes(size, physical_memory()):
        return found
    memory = max(found.memory, {"model": size}, key=lambda parts: sum(parts.values()))
    decoded = {DECODED: float(FORWARD * model.parameters * len(BEGINNINGS) * WRITTEN_LENGTH)}
    return replace(found, memory=memory, operations={**found.operations, **decoded}, opened=2)


def _writes(size: float, memory: float) -> bool:
    """Tell whether a model of so many bytes is put into a memory of so many to write samples."""
    return size <= memory / 2


def run(job: Job[EvaluateOptions]) -> dict[str, Any]:
    """Raise PassError where the loss is not finite: what the model says is then nothing to draw tokens from."""
    from sprunec.models.held_out import cross_entropy_sum, groups_of
    from sprunec.models.meta_models import empty_model

    place, config, masked = job.place, job.config(), "masks" in job.inputs
    data, model = job.data(config), empty_model(config)
    if masked:
        job.mask(model)
    saved = job.saves.latest() if job.saves is not None else None
    done, total, tokens = saved["found"] if saved is not None else (0, 0.0, 0)
    for batches in islice(groups_of(data.held_out_batches(job.options.tokens), config), done, None):
        total += cross_entropy_sum(job.block_by_block(model, batches), place, (done, total, tokens))
        tokens += sum(batch.target_count for batch in batches)
        done += 1
    loss = total / tokens
    if not math.isfinite(loss):
        dtype = str(place.dtype).removeprefix("torch.")
        message = f"the held-out loss is {loss}: numbers that the weights lead to are too large for {dtype}"
        raise PassError(f"{message}; fix the checkpoint, or give a wider engine.precision")
    size, perplexity = config.parameters(), math.exp(min(loss, 700.0))
    samples = _samples(job, data) if not masked and _writes(FLOAT * size, place.memory(1)) else []
    found = {"samples": samples, "sample": "".join(samples[0].values()) if samples else None}
    return {"parameters": size, "loss": loss, "perplexity": perplexity, "tokens": tokens, **found}


def _samples(job: Job[EvaluateOptions], data: Data) -> list[dict[str, str]]:
    """Let the model write on after some held-out texts, where the data can say it in text.

    It draws by the same numbers as any other model does, so that models that are alike write alike.
    """
    import torch

    starts = [data.sample(GIVEN_LENGTH, share) for share in BEGINNINGS]
    if None in starts:
        return []
    place, config, found = job.place, job.config(), list[dict[str, str]]()
    model: Any = job.model().eval()
    for start in filter(None, starts):
        given = family_of(config).proceed(config, start.document)
        given["input"] = start_ids = given["input"].to(place.device)
        given |= {"generator": torch.Generator(place.device).manual_seed(job.options.seed), "stop": start.stop}
        with place.precision():
            ids = model.generate(**given, max_new_tokens=WRITTEN_LENGTH, temperature=TEMPERATURE)[0].tolist()
        whole, before = data.decode(ids), data.decode(ids[: start_ids.size(1)])
        shown = before if whole.startswith(before) else ""  # it may end within a letter
        found.append({"given": shown, "written": whole[len(shown) :]})
    return found


EVALUATE = Pass(
    "evaluate", 4, EvaluateOptions, ("model", "data"), "measures", ("masks",), lower=lower, needs=needs, by_block=True
)
