"""Compare the small model with the masked one: the same tokens in, the worst difference of any logit out.

The masked model is the one before the cut with its masks as multiplications; it knows no recipe. An emitted model is
opened from disk both ways that users open it: built from its config, and through its own model.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from sprunec.checkpoint.reader import Tensors, open_tensors
from sprunec.data.compared import compared_batches
from sprunec.durable import read_file
from sprunec.errors import ComparisonError
from sprunec.families.base import family_of
from sprunec.families.cpm_ant.config import ModelConfig, local
from sprunec.families.model_directory import empty_model, open_model_tensors, read_config, read_kept
from sprunec.passes.bench import config_of, open_data, place_of, traced
from sprunec.passes.job import Job
from sprunec.rewrite.comparison import compare, few_threads
from sprunec.rewrite.gating import mask


def run(job: Job) -> dict[str, Any]:
    """Raises ComparisonError where the two differ by more than the arithmetic explains."""
    config, device = config_of(job, "masked"), place_of(job).device
    models = list(_models(job, config))
    data = open_data(job, config) if "data" in job.inputs else None
    found = []
    for batches in compared_batches(data, config, job.options["tokens"]):
        with few_threads(config.parameters(), sum(batch.targets.numel() for batch in batches)):
            found.append(compare(family_of(config), models, [batch.inputs for batch in batches], device))
    worst = max(found, key=lambda metrics: metrics["worst_block_difference"])
    merged = {key: max(metrics[key] for metrics in found) for key in worst if not key.startswith("worst_block")}
    metrics = worst | merged | {"tokens": sum(metrics["tokens"] for metrics in found)}
    check(metrics)
    return metrics


def check(metrics: dict[str, Any]) -> None:
    """Raises ComparisonError where one of the three differences is above its tolerance, by the worst of them."""
    block, tokens = metrics["worst_block"], metrics["tokens"]
    for kind, where in (("", "float64"), ("float32_", "float32")):
        difference, limit = metrics[f"{kind}difference" if kind else "max_abs_difference"], metrics[f"{kind}tolerance"]
        if not difference <= limit:
            raise ComparisonError(
                f"the rewritten model differs from the masked one by {difference:.3g} in {where} arithmetic on "
                f"{tokens} tokens, the tolerance is {limit:.3g}; most in block {block}; nothing is emitted",
                metrics,
            )
    if not metrics["worst_block_difference"] <= metrics["worst_block_tolerance"]:
        raise ComparisonError(
            f"block {block} of the rewritten model gives hidden states that are "
            f"{metrics['worst_block_difference']:.3g} from the masked one's for the same input, the tolerance is "
            f"{metrics['worst_block_tolerance']:.3g}; nothing is emitted",
            metrics,
        )


def _models(job: Job, config: ModelConfig) -> Iterator[tuple[nn.Module, Tensors]]:
    """The masked one, then the small one as it may be opened: on the meta device, with their tensors' places."""
    before, after = read_kept(job.inputs["masked"]), read_kept(job.inputs["masks"])
    masked = empty_model(config)
    mask(masked, traced(masked, config), [local(b, a) for b, a in zip(before, after, strict=True)])
    yield masked, open_model_tensors(job.inputs["masked"])
    directory = job.inputs["small"]
    emitted = directory / "sprunec"
    if not emitted.exists():
        yield empty_model(read_config(directory)), open_model_tensors(directory)
        return
    yield empty_model(read_config(emitted)), open_tensors(emitted)
    yield run_code(emitted).empty(emitted), open_tensors(emitted)


def run_code(directory: Path) -> Any:
    """The module of a model.py that this run has just written; a stranger's is never executed.

    Not imported: that would run, or leave, a compiled file that no manifest knows.
    """
    module, path = ModuleType("emitted_model"), directory / "model.py"
    module.__file__ = str(path)
    exec(compile(read_file(path), str(path), "exec"), module.__dict__)
    return module
