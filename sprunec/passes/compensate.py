"""Refit the weights behind units that are about to be cut, so that what stays stands in for them.

The columns of a projection that its mask keeps are fitted to the output that all of them gave, one sublayer after the
other on the model as it is cut by then; the others keep their values, since nothing reads them any more. Where gates
have been trained, what is cut counts as much as its soft gate let through, and what is kept counts whole, for the mask
opens it whole: fitted to its own soft gate it would shrink, and with many undecided gates the refit would cost more
than it gives. How strongly weights are drawn to what they were is chosen on sequences that are held back meanwhile.
Both the masked and the rewritten model get these weights, so one still computes what the other does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mode
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

TOKENS = 20_480  # that are fitted to where the plan does not say
PART, UNSEEN = 5, 4096  # one in so many sequences is held back, and no more tokens than that
RIDGE = 0.1  # where there is nothing to choose by


@dataclass(frozen=True, kw_only=True)
class RefitOptions(CalibrationOptions):
    """How strongly weights are drawn to what they were; None: as it does best on batches held back."""

    ridge: float | None


def held_back(options: RefitOptions, sequences: int) -> int:
    """Count the sequences, of so many, that a ridge is chosen by: a fifth, but no more than tell one from another."""
    if options.ridge is not None or sequences < 2:
        return 0
    return max(1, min(sequences // PART, UNSEEN // options.max_length))


def add(build: Builder, spec: PassSpec, masks: str, scores: str) -> None:
    """Refit the model that masks are put on, if the pass says so; weights that have learned beside gates by these."""
    if spec.options["compensate"] is None:
        return
    build.model = refitted(build, spec, masks, scores if scores == build.model else "")


def refitted(build: Builder, spec: PassSpec, masks: str, learned: str = "", suffix: str = "") -> str:
    """Add the node that refits the model to masks -> its name; `learned`: gives the gates that weights stood beside."""
    inputs = {"model": build.model, "masks": masks, "data": build.data, "scores": learned}
    options = build.options(RefitOptions, spec)
    if spec.options["batches"] is None:
        options = replace(options, batches=math.ceil(TOKENS / (options.max_length * options.batch_size)))
    return build.add("compensate", options, inputs, suffix, about=spec.options["compensate"])


def needs(build: Builder, node: Node) -> Needs:
    """Run a block once for each sublayer that is refitted, and once more to go on; write what is new of it."""
    model, units = build.sizes[node.inputs["model"]], getattr(build.nodes[node.inputs["masks"]].options, "unit", INSIDE)
    text, widths = Text(node.options.sequences, node.options.max_length), projection_widths(model.config, units)
    found = by_block(model, text, (1 + len(widths)) * forward(model, text), keep=build.keep)
    disk = model.item * sum(widths) * model.config.width * len(model.config.layers)
    unseen = Text(held_back(node.options, text.sequences), text.length)
    return replace(solved(found, model, text, widths, EXACT, unseen), disk=disk)


def run(job: Job[RefitOptions]) -> dict[str, Any]:
    from sprunec.checkpoint.writer import as_output, check_room, overlay_weights
    from sprunec.data.batches import divided, in_use
    from sprunec.families.model_directory import describe
    from sprunec.masks.gates import expected_gate
    from sprunec.masks.mask_tensors import load_scores
    from sprunec.masks.refitting import refits
    from sprunec.models.block_by_block import few_rows
    from sprunec.models.meta_models import empty_model, traced_shape

    config, left, tensors = job.config(), job.left(), job.weights()
    # What learned gates are without noise (Louizos, Welling & Kingma 2018, equation 13); nothing after a score.
    learned = load_scores(job.inputs["scores"]) if "scores" in job.inputs else {}
    soft = {key: expected_gate(value) for key, value in learned.items()}
    blocks = {block.path: (block, refits(block, left, soft)) for block in traced_shape(config)}
    names = [each.name for _, sublayers in blocks.values() for sublayer in sublayers for each in sublayer]
    check_room(job.out, sum(as_output(tensors, name).nbytes for name in names))
    batches = list(job.distinct_batches(config))
    sequences = sum(len(batch.targets) for batch in batches)
    fitted, unseen = divided(batches, sequences - held_back(job.options, sequences))
    seen = sum(1 for _ in few_rows(fitted, config))
    way = job.block_by_block(job.mask(empty_model(config)), [*fitted, *unseen])
    files, ridges = _refitted(job, way, blocks, seen)
    describe(job.out, config, job.kept())
    overlay_weights(job.inputs["model"], files, job.out)
    counts = [sum(int(in_use(batch.inputs).sum()) for batch in some) for some in (batches, unseen)]
    found = {"refitted": len(names), "tokens": counts[0], "unseen_tokens": counts[1]}
    return found | _told(job.options, sequences, ridges)


def _told(options: RefitOptions, sequences: int, ridges: Mapping[str, float]) -> dict[str, Any]:
    """Tell the ridges, from least to most, and what the data had too little of."""
    found, notes = dict[str, Any](), list[str]()
    if ridges:
        least, *_, most = [*sorted(ridges.values())] * 2
        about = f", mostly {mode(ridges.values()):g}" if least < most else ""
        found = {"ridge": f"{least:g} to {most:g}{about}" if least < most else f"{least:g}", "ridges": dict(ridges)}
    if sequences < options.sequences:
        notes.append(f"refitted on {sequences} sequences, since the data has no more of {options.sequences}")
    if options.ridge is None and sequences < 2:
        notes.append(f"one sequence leaves none to choose a ridge by; {RIDGE:g} was taken")
    return found | ({"notes": notes} if notes else {})


def _refitted(
    job: Job[RefitOptions], way: BlockByBlock, blocks: Mapping[str, Any], seen: int
) -> tuple[list[Path], dict[str, float]]:
    """Write each block's new weights as a file of its own, by the names that the input's files have -> the ridges, too.

    Args:
        seen: how many of the way's batches stand before those that ridges are chosen by.
    """
    from sprunec.checkpoint.reader import open_tensors
    from sprunec.checkpoint.writer import save_tensors
    from sprunec.durable import file_sha256
    from sprunec.families.model_directory import names_on_disk
    from sprunec.masks.refitting import refit_block

    names = names_on_disk(job.config(), open_tensors(job.directory()))
    digests, ridges = dict[str, str](), dict[str, float]()
    folder = job.out if job.saves is None else job.saves.directory
    ridge = RIDGE if job.options.ridge is None and seen == len(way.batches) else job.options.ridge

    def restore(saved: Mapping[str, Any]) -> bool:
        files = saved["files"].items()
        if all((folder / name).is_file() and file_sha256(folder / name) == digest for name, digest in files):
            digests.update(files)
            ridges.update(saved["ridges"])
            return True
        return False

    for path in way.blocks(lambda: {"files": dict(digests), "ridges": dict(ridges)}, restore):
        block, sublayers = blocks[path]
        new, chosen = refit_block(way, block, sublayers, seen, ridge)
        ridges.update(chosen)
        if new:
            file = folder / f"refitted-{block.index:05d}.safetensors"
            save_tensors({names[name]: tensor for name, tensor in new.items()}, file)
            digests[file.name] = file_sha256(file)
    return [folder / name for name in digests], ridges


COMPENSATE = Pass(
    "compensate",
    5,
    RefitOptions,
    ("model", "masks", "data"),
    "model",
    ("scores",),
    needs=needs,
    refits=True,
    by_block=True,
)
