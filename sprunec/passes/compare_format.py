"""Hold an emitted form, opened from disk as its users open it, against the small model that it was made of.

That model has been compared with the masked one. Here it runs in float64, and once more in float32, or in the dtype
that the form stores: how far these two are apart is the arithmetic's own noise, which no form can be asked to be below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sprunec.durable import read_file
from sprunec.errors import ComparisonError, FormError, PassError
from sprunec.passes.compare import CompareOptions
from sprunec.passes.job import Job
from sprunec.passes.looks import NOISES, TOLERANCE, looks
from sprunec.plan.pass_table import Pass

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sprunec.families.cpm_ant.walk import Inputs
    from sprunec.formats.reopen import Form
    from sprunec.graph.builder import Builder
    from sprunec.graph.graph import Node

LOGITS = 2**24  # numbers: what a form says is held as a whole
EPSILONS = 4.0
COMPARED = ("max_abs_difference", "tolerance", "noise", "tokens", "dtype")


@dataclass(frozen=True, kw_only=True)
class FormOptions(CompareOptions):
    form: str


def add(build: Builder, model: str, emitted: str, form: str) -> None:
    options = build.options(FormOptions, tokens=build.plan.compare_tokens, form=form)
    inputs = {"model": model, "emitted": emitted} | build.data_inputs()
    build.add("compare-format", options, inputs, suffix=form, about="opened again")


def run(job: Job[FormOptions]) -> dict[str, Any]:
    """Raises ComparisonError where a logit is further off than the arithmetic and the stored dtype explain."""
    import torch

    from sprunec.families.cpm_ant.walk import largest
    from sprunec.families.model_directory import open_model_tensors
    from sprunec.formats.reopen import FORMS

    name, config = job.options.form, job.config()
    form, directory = FORMS[name], job.inputs["emitted"] / name
    if not directory.is_dir():
        raise FormError(read_file(job.inputs["emitted"] / f"{name}.txt"))
    weights = open_model_tensors(job.inputs["model"])
    stored = form.dtype(directory, weights)
    rounds_in = stored if form.in_its_dtype or not form.exact(directory) else torch.float32
    found = {"max_abs_difference": 0.0, "noise": 0.0, "largest_logit": 0.0}
    tokens = 0
    for batches in looks(job, config, most=LOGITS // config.vocab_size):
        inputs = [each for batch in batches for each in form.inputs(directory, config, batch)]
        said = form.logits(directory, config, inputs).double()
        exact, rounded = (_logits(job, form, inputs, dtype) for dtype in (torch.float64, rounds_in))
        found = {
            "max_abs_difference": max(found["max_abs_difference"], largest(said - exact)),
            "noise": max(found["noise"], largest(rounded - exact)),
            "largest_logit": max(found["largest_logit"], largest(exact)),
        }
        tokens += exact.size(0)
    if not math.isfinite(found["largest_logit"]):
        raise PassError("the small model's own logits are not finite, so nothing can be compared with them")
    limit = tolerance(stored if rounds_in != torch.float32 else torch.float32, found["largest_logit"], found["noise"])
    metrics = {"form": name, "tolerance": limit, "tokens": tokens, "dtype": str(stored).removeprefix("torch.")} | found
    if not found["max_abs_difference"] <= limit:
        raise ComparisonError(metrics)
    return metrics


def _logits(job: Job[FormOptions], form: Form, inputs: list[Inputs], dtype: torch.dtype) -> Tensor:
    """The small model's (columns, V), one tensor of it in memory at a time."""
    import torch

    from sprunec.families.cpm_ant.walk import Walk
    from sprunec.families.model_directory import empty_model, open_model_tensors

    model, weights = empty_model(job.config()), open_model_tensors(job.inputs["model"])
    walk = Walk(model, weights, inputs, dtype, torch.device("cpu"))
    walk.run()
    pairs = zip(walk.hidden, inputs, strict=True)
    states = torch.cat([hidden[form.used(batch)] for hidden, batch in pairs])
    with torch.no_grad():
        return torch.cat([walk.leave(states, part).double() for part in _parts(walk.words)], dim=1)


def _parts(words: int, step: int = 4096) -> list[range]:
    return [range(first, min(first + step, words)) for first in range(0, words, step)]


def tolerance(dtype: torch.dtype, largest_logit: float, noise: float = math.inf) -> float:
    """What may be: grows with the logits, and with the noise that was measured.

    Args:
        dtype: of the arithmetic, or of weights that have been rounded once more.
        noise: infinite where it is not known, or a narrow dtype overflows: what rounding can do is then told by the
            dtype's epsilon.
    """
    import torch

    least = TOLERANCE * max(1.0, largest_logit)
    if not math.isfinite(noise):
        return max(least, EPSILONS * float(torch.finfo(dtype).eps) * largest_logit)
    return max(least, NOISES * noise)


def report(document: dict[str, Any], node: Node, metrics: Mapping[str, Any]) -> None:
    """What an artifact of an earlier release does not know stays out."""
    found = {key: metrics[key] for key in COMPARED if key in metrics}
    document["formats"][metrics["form"]] = document["formats"].get(metrics["form"], {}) | found


COMPARE_FORMAT = Pass(
    "compare-format", 2, FormOptions, ("model", "emitted"), "comparison", ("data",), report=report, fails_alone=True
)
