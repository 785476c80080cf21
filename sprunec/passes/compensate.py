"""Refit the weights behind units that are about to be cut, so that what stays stands in for them.

The columns of a projection that its mask keeps are fitted to the output that all of them gave, one sublayer after the
other on the model as it is cut by then; the others keep their values, since nothing reads them any more. Where gates
have been trained, what is cut counts as much as its soft gate let through, and what is kept counts whole, for the mask
opens it whole: fitted to its own soft gate it would shrink, and with many undecided gates the refit would cost more
than it gives. Both the masked and the rewritten model get these weights, so one still computes what the other does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.graph.arithmetic import Text, by_block, forward, projection_widths, solved
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.needs import EXACT, Needs
from sprunec.graph.options import CalibrationOptions
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass, PassSpec
from sprunec.units import INSIDE

if TYPE_CHECKING:
    from sprunec.models.block_by_block import BlockByBlock


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


def needs(build: Builder, node: Node) -> Needs:
    """Run a block once for each sublayer that is refitted, and once more to go on; write what is new of it."""
    model, units = build.sizes[node.inputs["model"]], getattr(build.nodes[node.inputs["masks"]].options, "unit", INSIDE)
    text, widths = Text(node.options.sequences, node.options.max_length), projection_widths(model.config, units)
    found = by_block(model, text, (1 + len(widths)) * forward(model, text), keep=build.keep)
    disk = model.item * sum(widths) * model.config.width * len(model.config.layers)
    return replace(solved(found, model, text, widths, EXACT), disk=disk)


def run(job: Job[RefitOptions]) -> dict[str, Any]:
    from sprunec.checkpoint.writer import as_output, check_room, overlay_weights
    from sprunec.families.model_directory import describe
    from sprunec.masks.gates import expected_gate
    from sprunec.masks.mask_tensors import load_scores
    from sprunec.masks.refitting import refits
    from sprunec.models.meta_models import empty_model, traced_shape

    config, left, tensors = job.config(), job.left(), job.weights()
    # What learned gates are without noise (Louizos, Welling & Kingma 2018, equation 13); nothing after a score.
    learned = load_scores(job.inputs["scores"]) if "scores" in job.inputs else {}
    soft = {key: expected_gate(value) for key, value in learned.items()}
    blocks = {block.path: (block, refits(block, left, soft)) for block in traced_shape(config)}
    names = [each.name for _, sublayers in blocks.values() for sublayer in sublayers for each in sublayer]
    check_room(job.out, sum(as_output(tensors, name).nbytes for name in names))
    files = _refitted(job, job.block_by_block(job.mask(empty_model(config)), job.batches(config)), blocks)
    describe(job.out, config, job.kept())
    overlay_weights(job.inputs["model"], files, job.out)
    return {"refitted": len(names)}


def _refitted(job: Job[RefitOptions], way: BlockByBlock, blocks: Mapping[str, Any]) -> list[Path]:
    """Write each block's new weights as a file of its own, by the names that the input's files have."""
    from sprunec.checkpoint.reader import open_tensors
    from sprunec.checkpoint.writer import save_tensors
    from sprunec.durable import file_sha256
    from sprunec.families.model_directory import names_on_disk
    from sprunec.masks.refitting import refit_block

    names = names_on_disk(job.config(), open_tensors(job.directory()))
    digests, folder = dict[str, str](), job.out if job.saves is None else job.saves.directory

    def restore(saved: Mapping[str, str]) -> bool:
        if all((folder / name).is_file() and file_sha256(folder / name) == digest for name, digest in saved.items()):
            digests.update(saved)
            return True
        return False

    for path in way.blocks(lambda: dict(digests), restore):
        block, sublayers = blocks[path]
        if new := refit_block(way, block, sublayers, job.options.ridge):
            file = folder / f"refitted-{block.index:05d}.safetensors"
            save_tensors({names[name]: tensor for name, tensor in new.items()}, file)
            digests[file.name] = file_sha256(file)
    return [folder / name for name in digests]


COMPENSATE = Pass(
    "compensate",
    4,
    RefitOptions,
    ("model", "masks", "data"),
    "model",
    ("scores",),
    needs=needs,
    refits=True,
    by_block=True,
)
