"""Compare an exported model, opened from disk as its users open it, with the small model that it was made of.

That model has been compared with the masked one. Here it runs in float64, and once more in float32, or in the dtype
that the format stores: how far these two are apart is the arithmetic's own noise, which no format can be asked to be
below.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sprunec.durable import read_file
from sprunec.errors import ComparisonError, FormatError, PassError
from sprunec.families.base import family_of
from sprunec.graph.arithmetic import compared
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.needs import EXACT, SINGLE, Needs
from sprunec.passes.compare import CompareOptions
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass
from sprunec.plan.export_formats import FORMATS, Continued

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sprunec.checkpoint.reader import Tensors
    from sprunec.families.base import Inputs
    from sprunec.families.base_config import ModelConfig

LOGITS = 2**24  # numbers: what a format says is held as a whole
EPSILONS = 4.0
COMPARED = ("max_abs_difference", "tolerance", "noise", "tokens", "dtype")
SOME = ("decoding_difference", "own_code", "runtime", "greedy")  # of formats that are opened in ways of their own


@dataclass(frozen=True, kw_only=True)
class FormatOptions(CompareOptions):
    """The format's name."""

    form: str


def add(build: Builder, model: str, emitted: str, form: str) -> None:
    """Add a node that compares a format with the model it was made of."""
    options = build.options(FormatOptions, tokens=build.plan.compare_tokens, form=form)
    inputs = {"model": model, "emitted": emitted, "data": build.data}
    build.add("compare-format", options, inputs, suffix=form, about="opened again")


def needs(build: Builder, node: Node) -> Needs:
    """Run the small model in two arithmetics, and the format."""
    small, form = build.sizes[node.inputs["model"]], FORMATS[node.options.form]
    sweeps = [(small, kind) for kind in (EXACT, SINGLE, SINGLE)]
    found = compared(sweeps, node.options, LOGITS // small.config.vocab_size)
    held = {"model": form.in_memory * small.nbytes, "reopened": form.opens(small.config)}
    return replace(found, memory={**found.memory, **held})


def run(job: Job[FormatOptions]) -> dict[str, Any]:
    """Raise ComparisonError where a logit is further off than the arithmetic and the stored dtype explain."""
    import torch

    from sprunec.data.compared import compared_batches
    from sprunec.models.streamed import largest

    name, config = job.options.form, job.config()
    directory, reopen = job.inputs["emitted"] / name, FORMATS[name].reopen
    assert reopen is not None, name
    if not directory.is_dir():
        raise FormatError(read_file(job.inputs["emitted"] / f"{name}.txt"))
    weights, data = job.weights(), job.data(config) if "data" in job.inputs else None
    opened, difference, noise, largest_logit, tokens = reopen(directory, config, weights), 0.0, 0.0, 0.0, 0
    for batches in compared_batches(data, config, job.options.tokens, most=LOGITS // config.vocab_size):
        inputs = [each for batch in batches for each in opened.inputs(batch.inputs)]
        said, dtypes = opened.logits(inputs), (torch.float64, opened.arithmetic)
        stored = (weights, weights if opened.weights is None else opened.weights)
        each = zip(stored, dtypes, strict=True)
        both = zip(*(_logits(config, state, inputs, opened.skipped, dtype) for state, dtype in each), strict=True)
        for (part, exact), (_, rounded) in both:
            difference = max(difference, largest(said[:, part.start : part.stop] - exact))
            noise, largest_logit = max(noise, largest(rounded - exact)), max(largest_logit, largest(exact))
        tokens += said.size(0)
    if not math.isfinite(largest_logit):
        raise PassError("the small model's own logits are not finite, so nothing can be compared with them")
    limit, dtype = tolerance(opened.arithmetic, largest_logit, noise), str(opened.stored).removeprefix("torch.")
    metrics = {"form": name, "tolerance": limit, "tokens": tokens, "dtype": dtype}
    metrics |= {"max_abs_difference": difference, "noise": noise, "largest_logit": largest_logit}
    if not (gap := max(opened.gaps, default=0.0)) <= limit:
        message = f"the format {name} generates with past keys and values what is {gap:.3g} from what it says in one go"
        raise ComparisonError(f"{message}, where {limit:.3g} may be; it is not emitted", metrics)
    metrics |= {"decoding_difference": gap} if opened.gaps else {}
    metrics |= {"own_code": True} if opened.own_code else {}
    metrics |= {"runtime": opened.runtime} if opened.runtime else {}
    metrics |= {"greedy": _greedy(config, weights, opened.continued[0])} if opened.continued else {}
    if not difference <= limit:
        message = f"the format {name} differs from the model it was made of by {difference:.3g} on {tokens} tokens"
        message = f"{message}, the tolerance of {dtype} is {limit:.3g}; it is not emitted"
        raise ComparisonError(message, metrics)
    return metrics


def _logits(
    config: ModelConfig, weights: Tensors, inputs: list[Inputs], skipped: int, dtype: torch.dtype
) -> Iterator[tuple[range, Tensor]]:
    """Compute the small model's (n, V), some tokens of the head and one tensor of the model in memory at a time."""
    import torch

    from sprunec.models.meta_models import empty_model
    from sprunec.models.streamed import Streamed

    model = Streamed(family_of(config), empty_model(config), weights, inputs, dtype, torch.device("cpu"))
    return model.logits(skipped)


def _greedy(config: ModelConfig, weights: Tensors, continued: Continued) -> dict[str, Any]:
    """Tell how far the small model goes on as a format does: by its likeliest tokens behind what this has added.

    As long as they are the same, that is how it goes on itself.
    """
    import torch

    start, pieces = continued.start, continued.pieces
    logits = [part for _, part in _logits(config, weights, [continued.inputs], 0, torch.float32)]
    likeliest = torch.cat(logits, dim=1)[start - 1 : -1].argmax(dim=1)
    same = int((likeliest == continued.inputs["input"][0, start:]).long().cumprod(0).sum())
    return {"tokens": len(pieces), "same": same, "text": "".join(pieces), "small": "".join(pieces[:same])}


def tolerance(dtype: torch.dtype, largest_logit: float, noise: float = math.inf) -> float:
    """Say what may be: it grows with the logits, and with the noise that was measured.

    Args:
        dtype: of the arithmetic, or of weights that have been rounded once more.
        noise: infinite where it is not known, or a narrow dtype overflows: what rounding can do is then told by the
            dtype's epsilon.
    """
    import torch

    from sprunec.models.comparison import NOISES, TOLERANCE

    least = TOLERANCE * max(1.0, largest_logit)
    if not math.isfinite(noise):
        return max(least, EPSILONS * float(torch.finfo(dtype).eps) * largest_logit)
    return max(least, NOISES * noise)


def report(document: dict[str, Any], node: Node, metrics: Mapping[str, Any]) -> None:
    """Add to what the report says of a format; what an artifact of an earlier release does not know stays out."""
    found = {key: metrics[key] for key in (*COMPARED, *SOME) if key in metrics}
    document["formats"][metrics["form"]] = document["formats"].get(metrics["form"], {}) | found


COMPARE_FORMAT = Pass(
    "compare-format",
    2,
    FormatOptions,
    ("model", "emitted"),
    "comparison",
    ("data",),
    needs=needs,
    report=report,
    fails_alone=True,
)
