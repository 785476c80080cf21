"""Compare the small model with the masked one: the same tokens in, the worst difference of any logit out.

The masked model is the one before the cut with its masks as multiplications; it knows no recipe. An emitted model is
opened from disk both ways that users open it: built from its config, and through its own model.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sprunec.durable import read_file
from sprunec.errors import ComparisonError
from sprunec.families.base import family_of
from sprunec.graph.arithmetic import compared
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.needs import EXACT, SINGLE, Needs
from sprunec.graph.options import BatchOptions
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass

if TYPE_CHECKING:
    from torch import nn

    from sprunec.checkpoint.reader import Tensors

IN_FLOAT32 = ("float32_difference", "float32_tolerance", "float32_noise")
COMPARED = ("max_abs_difference", "tolerance", "tokens", *IN_FLOAT32, "largest_logit")


@dataclass(frozen=True, kw_only=True)
class CompareOptions(BatchOptions):
    """On how many tokens; None: as many as the model's size allows."""

    tokens: int | None


def add(build: Builder, masked: str, masks: str, small: str) -> None:
    """Add a node that compares two nodes' models."""
    options = build.options(CompareOptions, tokens=build.plan.compare_tokens)
    inputs = {"masked": masked, "masks": masks, "small": small, "data": build.data}
    build.add("compare", options, inputs, about="masked = small")


def needs(build: Builder, node: Node) -> Needs:
    """Open an emitted model in two ways."""
    masked, small = (build.sizes[node.inputs[role]] for role in ("masked", "small"))
    ways = 2 if build.nodes[node.inputs["small"]].gives == "emitted" else 1
    models = masked, *[small] * ways
    return compared([(model, kind) for model in models for kind in (SINGLE, EXACT)], node.options)


def run(job: Job[CompareOptions]) -> dict[str, Any]:
    """Raise ComparisonError where the two differ by more than the arithmetic explains."""
    from sprunec.data.compared import compared_batches
    from sprunec.models.comparison import Way, compare, few_threads

    config, models, device = job.config("masked"), _models(job), job.place.device
    data, saved = job.data(config) if "data" in job.inputs else None, job.saves.latest() if job.saves else None
    found: list[dict[str, Any]] = saved["before"] if saved is not None else []
    for batches in islice(compared_batches(data, config, job.options.tokens), len(found), None):
        way = Way(job.saves, list(found), job.tell_block)
        with few_threads(config.parameters(), sum(batch.targets.numel() for batch in batches)):
            found.append(compare(family_of(config), models, [batch.inputs for batch in batches], device, way))
    worst = max(found, key=lambda metrics: metrics["worst_block_difference"])
    merged = {key: max(metrics[key] for metrics in found) for key in worst if not key.startswith("worst_block")}
    metrics = worst | merged | {"tokens": sum(metrics["tokens"] for metrics in found)}
    check(metrics)
    return metrics


def check(metrics: dict[str, Any]) -> None:
    """Raise ComparisonError where one of the three differences is above its tolerance, by the worst of them."""
    differs, block = "the rewritten model differs from the masked one by {0:.3g} in", metrics["worst_block"]
    limited = f"arithmetic on {metrics['tokens']} tokens, the tolerance is {{1:.3g}}; most in block {block}"
    states = f"block {block} of the rewritten model gives hidden states that are {{0:.3g}} from the masked one's"
    for difference, tolerance, words in (
        ("max_abs_difference", "tolerance", f"{differs} float64 {limited}"),
        ("float32_difference", "float32_tolerance", f"{differs} float32 {limited}"),
        ("worst_block_difference", "worst_block_tolerance", f"{states} for the same input, the tolerance is {{1:.3g}}"),
    ):
        if not metrics[difference] <= metrics[tolerance]:
            message = words.format(metrics[difference], metrics[tolerance])
            raise ComparisonError(f"{message}; nothing is emitted", metrics)


def _models(job: Job[CompareOptions]) -> list[tuple[nn.Module, Tensors]]:
    """Open the masked one, then the small one in both ways: on the meta device, with tensors read when used."""
    from sprunec.checkpoint.reader import open_tensors
    from sprunec.models.meta_models import empty_model

    directory, small = job.directory("small"), empty_model(job.config("small"))
    masked = job.mask(empty_model(job.config("masked")), "masked"), job.weights("masked")
    if directory == job.inputs["small"]:
        return [masked, (small, job.weights("small"))]
    opened = open_tensors(directory)
    return [masked, (small, opened), (run_code(directory).empty(directory), opened)]


def run_code(directory: Path) -> Any:
    """Run a model.py that this run has just written; a stranger's is never executed.

    Not imported: that would run, or leave, a compiled file that no manifest knows.
    """
    module, path = ModuleType("emitted_model"), directory / "model.py"
    module.__file__ = str(path)
    exec(compile(read_file(path), str(path), "exec"), module.__dict__)
    return module


def report(document: dict[str, Any], node: Node, metrics: Mapping[str, Any]) -> None:
    """Keep the worst of all comparisons of the run; what an artifact of an earlier release does not know stays out."""
    before = document["comparison"] or {}
    worst = max(before, metrics, key=lambda found: _severity(found.get("worst_block_difference", -1.0)))
    known = {key: [found[key] for found in (metrics, before) if key in found] for key in COMPARED}
    merged = {key: max(values, key=_severity) for key, values in known.items() if values}
    document["comparison"] = merged | {key: worst[key] for key in ("worst_block", "worst_block_difference")}


def _severity(value: float | None) -> float:
    """Rank a number that is none, which the store has as null, as worse than any that is."""
    return math.inf if value is None or math.isnan(value) else value


COMPARE = Pass(
    "compare",
    6,
    CompareOptions,
    ("masked", "masks", "small"),
    "comparison",
    ("data",),
    needs=needs,
    report=report,
    by_block=True,
)
