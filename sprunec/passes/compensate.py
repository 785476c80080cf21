"""Refit the weights behind units that are about to be cut, so that what stays stands in for them.

The columns of a projection that its mask keeps are fitted to the output that all of them gave, one sublayer after the
other on the model as it is cut by then; the others keep their values, since nothing reads them any more. Where gates
have been trained, what is cut counts as much as its soft gate let through, and what is kept counts whole, for the mask
opens it whole: fitted to its own soft gate it would shrink, and with many undecided gates the refit would cost more
than it gives. Both the masked and the rewritten model get these weights, so one still computes what the other does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sprunec.graph.builder import Builder
from sprunec.graph.options import CalibrationOptions
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass, PassSpec

if TYPE_CHECKING:
    from torch import Tensor

    from sprunec.checkpoint.writer import Output


@dataclass(frozen=True, kw_only=True)
class RefitOptions(CalibrationOptions):
    """How strongly weights are drawn to what they were."""

    ridge: float


def add(build: Builder, spec: PassSpec, masks: str, scores: str) -> None:
    """Refit the model that masks are put on, if the pass says so; weights that have learned beside gates by these."""
    if spec.options["compensate"] is None:
        return
    learned = scores if scores == build.model else ""
    inputs = {"model": build.model, "masks": masks, "data": build.data, "scores": learned}
    build.model = build.add("compensate", build.options(RefitOptions, spec), inputs, about=spec.options["compensate"])


def run(job: Job[RefitOptions]) -> dict[str, Any]:
    import torch

    from sprunec.checkpoint.writer import check_room
    from sprunec.families.base import family_of
    from sprunec.families.model_directory import save_outputs
    from sprunec.masks.gates import expected_gate
    from sprunec.masks.mask_tensors import load_scores
    from sprunec.masks.refitting import refits, refitted
    from sprunec.models.meta_models import empty_model, traced_shape
    from sprunec.models.streamed import Streamed

    config, tensors, place, left = job.config(), job.weights(), job.place, job.left()
    # What learned gates are without noise (Louizos, Welling & Kingma 2018, equation 13); nothing after a score.
    learned = load_scores(job.inputs["scores"]) if "scores" in job.inputs else {}
    soft = {key: expected_gate(value) for key, value in learned.items()}
    blocks = [(block, refits(block, left, soft)) for block in traced_shape(config)]
    names = [each.name for _, sublayers in blocks for sublayer in sublayers for each in sublayer]
    inputs = [batch.to(place.device).inputs for batch in job.batches(config)]
    masked = job.mask(empty_model(config)).eval()
    stream = Streamed(family_of(config), masked, tensors, inputs, torch.float32, place.device)
    # Each is made when its turn to be written comes, so that there is never more than one.
    made = refitted(stream, job.steps(blocks, len(blocks)), job.options.ridge)
    outputs = {name: _next(name, tensors.shape(name), made) for name in names}
    outputs |= {name: _in_float32(tensors, name) for name in tensors if name not in outputs}
    check_room(job.out, sum(output.nbytes for output in outputs.values()))
    save_outputs(job.out, config, job.kept(), outputs)
    return {"refitted": len(names)}


def _next(name: str, shape: tuple[int, ...], made: Iterator[tuple[str, Tensor]]) -> Output:
    import torch

    from sprunec.checkpoint.writer import Output

    def parts() -> Iterator[Tensor]:
        found, weight = next(made)
        assert found == name, f"{found} was made in the place of {name}"
        yield weight

    return Output(shape, torch.float32, parts)


def _in_float32(tensors: Any, name: str) -> Output:
    import torch

    from sprunec.checkpoint.writer import Output, read_rows

    return Output(tensors.shape(name), torch.float32, lambda: (part.float() for part in read_rows(tensors, name)))


COMPENSATE = Pass("compensate", 3, RefitOptions, ("model", "masks", "data"), "model", ("scores",), refits=True)
