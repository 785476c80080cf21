"""Hold an emitted form, opened from disk as its users open it, against the small model that it was made of.

That model has been compared with the masked one. A form that folds factors into weights has rounded them once more, so
its tolerance is that of the dtype that it stores.
"""

from __future__ import annotations

from typing import Any

import torch

from sprunec.errors import ComparisonError
from sprunec.model.checkpoint import load_model
from sprunec.passes.bench import config_of
from sprunec.passes.forms.opening import FORMS
from sprunec.passes.job import Job
from sprunec.passes.looks import look

BATCHES = 2
TOLERANCE = 1e-5
EPSILONS = 4


def run(job: Job) -> dict[str, Any]:
    """Raises ComparisonError where a logit is further off than the stored dtype explains."""
    name = job.options["form"]
    form, directory = FORMS[name], job.inputs["emitted"] / name
    model = load_model(job.inputs["model"]).eval()
    dtype = form.dtype(directory, model)
    model = model if form.in_its_dtype else model.float()
    difference, largest, tokens = 0.0, 0.0, 0
    for batch in look(job, config_of(job), BATCHES):
        found, wanted = form.logits(directory, model, batch)
        difference = max(difference, float((found - wanted).abs().nan_to_num(float("inf")).max()))
        largest, tokens = max(largest, float(wanted.abs().max())), tokens + wanted.size(0)
    exact = form.exact(directory)
    metrics = {
        "form": name,
        "max_abs_difference": difference,
        "tolerance": tolerance(torch.float32 if exact else dtype, largest),
        "tokens": tokens,
        "largest_logit": largest,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if not difference <= metrics["tolerance"]:
        raise ComparisonError(metrics)
    return metrics


def tolerance(dtype: torch.dtype, largest: float) -> float:
    """Grows with the logits: float32 differs by the order of sums, half precision by one more rounding of weights."""
    if dtype == torch.float32:
        return TOLERANCE * max(1.0, largest)
    return float(EPSILONS * torch.finfo(dtype).eps * largest)
