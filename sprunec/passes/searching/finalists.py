"""Measure solutions of a search on the model cut to them and refitted, on text that nothing was fitted to; take one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.durable import read_file, write_new
from sprunec.graph.arithmetic import Text, by_block, forward, projection_widths, solved
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.needs import EXACT, Needs
from sprunec.graph.options import CalibrationOptions
from sprunec.passes.job import Job
from sprunec.passes.score_choices import stage, unseen_batches
from sprunec.plan.declared import Pass, PassSpec
from sprunec.units import INSIDE, UNITS, Kept

if TYPE_CHECKING:
    from torch import Tensor

    from sprunec.data.batches import Batch

SOLUTIONS = "solutions.json"  # the best first, or the one that was taken; `kept.json` beside it is what that keeps
TOLD = ("limits", "parameters", "damage", "gap", "absent")


@dataclass(frozen=True, kw_only=True)
class FinalistOptions(CalibrationOptions):
    """How solutions are refitted, if at all, and on how many batches behind those they are measured."""

    damage_batches: int
    compensate: str | None
    ridge: float


def add(build: Builder, spec: PassSpec, solutions: str, suffix: str, **more: Any) -> str:
    """Add the node that takes one of a node's solutions -> its name; its artifact is masks."""
    options = build.options(FinalistOptions, spec, precision="fp32")
    inputs = {"model": build.model, "solutions": solutions, "data": build.data}
    return build.add("measure-finalists", options, inputs, suffix, about="divergence of cut models", **more)


def needs(build: Builder, node: Node) -> Needs:
    """Go through the dense model, and as `compensate` does through each that is cut."""
    model, options = build.sizes[node.inputs["model"]], node.options
    count: int = build.nodes[node.inputs["solutions"]].options.count
    unseen = Text(options.damage_batches * options.batch_size, options.max_length)
    text = Text(options.sequences + unseen.sequences, options.max_length)
    widths = projection_widths(model.config, INSIDE) if options.compensate else []
    operations = forward(model, unseen, head=True) + count * (1 + len(widths)) * forward(model, text)
    found = by_block(model, text, operations, keep=build.keep, head=True)
    return replace(solved(found, model, text, widths, EXACT), opened=1 + count)


def run(job: Job[FinalistOptions]) -> dict[str, Any]:
    from sprunec.masks.search.divergence import Divergence
    from sprunec.masks.search.walked import Walked
    from sprunec.models.meta_models import empty_model

    solutions = json.loads(read_file(job.inputs["solutions"] / SOLUTIONS))
    config, fitted = job.config(), list(job.batches(job.config()))
    unseen, asked = unseen_batches(job, fitted)
    left = [number for number, solution in enumerate(solutions) if "kl" not in solution]  # others have been measured
    dense = Walked(stage(job, "dense", 0, 1 + len(left)).block_by_block(empty_model(config), unseen), asked, ())
    dense.walk()
    measure, rows = Divergence(dense), [dict(solution) for solution in solutions]
    kept = [row.pop("kept") for row in rows]
    for place, number in enumerate(left, start=1):
        at = stage(job, str(1 + number), place, 1 + len(left))
        states = _behind(at, Kept.from_json(kept[number]), fitted if job.options.compensate else [], unseen)
        (rows[number]["kl"],) = measure.divergences([states])
    best = min(range(len(rows)), key=lambda number: rows[number]["kl"])
    write_new(job.out / "kept.json", json.dumps(kept[best]))
    write_new(job.out / SOLUTIONS, json.dumps([rows[best] | {"kept": kept[best]}]))
    return rows[best] | {"taken": 1 + best, "finalists": rows}


def _behind(job: Job[FinalistOptions], kept: Kept, fitted: Sequence[Batch], unseen: Sequence[Batch]) -> list[Tensor]:
    """Give the states behind the last block of the model that is cut and refitted, of the batches that are unseen."""
    from sprunec.masks.refitting import refit_block, refits
    from sprunec.models.block_by_block import few_rows
    from sprunec.models.meta_models import empty_model, traced_shape
    from sprunec.rewrite.gating import mask

    config, left = job.config(), kept.inside(job.kept())
    model, blocks = empty_model(config), {block.path: block for block in traced_shape(config)}
    few = list(few_rows(fitted, config))
    way = job.block_by_block(mask(model, job.traced(model), left), [*few, *unseen])
    way.looked = len(few)
    for path in way.blocks(lambda: None, lambda saved: True):
        refit_block(way, blocks[path], refits(blocks[path], left, {}) if few else [], len(few), job.options.ridge)
    return [way.hidden[number] for number in range(len(few), len(way.hidden))]


def write(role: str, artifact: Path, inputs: Mapping[str, Path], path: Path) -> None:
    """Write the mask that was taken to a file of its own; `role` is the file's form."""
    from sprunec.bmcook.masks.mask_forms import write_mask
    from sprunec.families.model_directory import read_kept

    write_mask(path, role, UNITS.keys(), *map(read_kept, (inputs["source"], inputs["model"], artifact)))


def report(document: dict[str, Any], node: Node, metrics: Mapping[str, Any]) -> None:
    """Put what was taken in the place of what the search alone has found."""
    tell(document, node, metrics, node.inputs["solutions"])


def tell(document: dict[str, Any], node: Node, metrics: Mapping[str, Any], search: str) -> None:
    """List in the report the solution of a node that searches, in the place of one before for the same target."""
    rows = document.setdefault("search", [])
    found = {"pass": search, "chosen": not node.aside} | {key: metrics[key] for key in TOLD}
    found |= {"kl": metrics.get("kl"), "taken": metrics.get("taken", 1)}
    rows[:] = [row for row in rows if _asked(row) != _asked(found)] + [found]


def _asked(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: limit["asked"] for name, limit in row["limits"].items()}


MEASURE_FINALISTS = Pass(
    "measure-finalists",
    2,
    FinalistOptions,
    ("model", "solutions", "data"),
    "masks",
    needs=needs,
    report=report,
    by_block=True,
)
