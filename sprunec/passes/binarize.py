"""Scores, learned or cheap, into 0/1 masks: the best units, exactly as much as the target says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.durable import write_new
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.options import MaskOptions
from sprunec.passes import cut
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass, PassSpec
from sprunec.plan.planned_sizes import short_message
from sprunec.units import COUNTED, INSIDE, UNITS

if TYPE_CHECKING:
    from sprunec.masks.budgets import Budget


@dataclass(frozen=True, kw_only=True)
class BinarizeOptions(MaskOptions):
    """What is kept of what was scored; `learned`: by gates that have learned another target."""

    allocation: str = ""
    multiple_of: Mapping[str, int] = field(default_factory=dict)
    learned: bool = False


def add(build: Builder, spec: PassSpec, scores: str) -> None:
    """Add masks of what a node has scored, and cut to them."""
    options = build.options(BinarizeOptions, spec, allocation=allocation(spec), learned="gates_for" in spec.options)
    extra: dict[str, Any] = {"provenance": build.provenance(options.unit, options.target)}
    if options.learned:
        gates_for = target_words(spec, spec.options["gates_for"])
        extra["notes"] = (f"cut to another target by the gates learned for {gates_for}",)
    if "save_mask" in spec.options:
        extra["writes"] = {spec.options["mask_form"]: spec.options["save_mask"]}
    inputs = {"model": build.model, "scores": scores}
    cut.add(build, spec, build.add("binarize", options, inputs, about=target_words(spec), **extra), scores)


def allocation(spec: PassSpec) -> str:
    """Say `scores` where the start of the gates says how many units each layer keeps, and there is a choice left.

    Of sublayers it says which, so that a pass over them alone would have nothing to learn.
    """
    given = spec.options
    free = given["budget"] == "global" and not given["tie_heads"] and not set(given["unit"]).isdisjoint(INSIDE)
    return "scores" if free and given.get("allocation") == "scores" else ""


def target_words(spec: PassSpec, target: Mapping[str, Any] | None = None) -> str:
    words = ", ".join(f"{name} -> {value}" for name, value in (target or spec.options["target"]).items())
    words += "".join(f", {name} in multiples of {count}" for name, count in spec.options["multiple_of"].items())
    scope = "the same in all layers" if spec.options["tie_heads"] else spec.options["budget"]
    shared = f", by {spec.options['criterion']}" if allocation(spec) else ""
    return f"{words} ({scope}{shared})"


def run(job: Job[BinarizeOptions]) -> dict[str, Any]:
    from sprunec.masks.budgets import allocated, fill_all, make_budgets
    from sprunec.masks.learn import settling
    from sprunec.masks.mask_tensors import START, load_scores

    config, options, scores = job.config(), job.options, load_scores(job.inputs["scores"])
    wanted = (options.unit, options.target, options.budget, options.tie_heads, options.multiple_of)
    budgets = make_budgets(config, *wanted)
    shared = allocated(config, budgets, load_scores(job.inputs["scores"] / START)) if options.allocation else budgets
    before = job.kept()
    kept = before.then({key: mask.tolist() for key, mask in fill_all(shared, scores).items()})
    write_new(job.out / "kept.json", json.dumps(kept.to_json()))
    after = config.cut(before, kept)
    notes, rows = _shortfalls(options, budgets), list[dict[str, Any]]()
    rows += [{"name": b.name, "asked": b.asked, "target": b.target, "got": b.measure(after)} for b in budgets]
    if options.learned:  # how far the gates are from a target that they have not learned
        rows = [row | soft for row, soft in zip(rows, settling(budgets, scores), strict=True)]
        worst = max(rows, key=lambda row: abs(row["expected"] - row["target"]) / row["full"])
        words = f"{worst['name']}: the gates expect {worst['expected']:.2f}, the target is {worst['target']:g}"
        notes.insert(0, f"{words}; {'settled' if all(row['settled'] for row in rows) else 'not settled'}")
    return {"budgets": rows, "parameters": after.parameters()} | ({"notes": notes} if notes else {})


def _shortfalls(options: BinarizeOptions, budgets: Sequence[Budget]) -> list[str]:
    """Tell what was asked for and is not there."""
    less, counted = [budget for budget in budgets if budget.target < budget.asked], {budget.name for budget in budgets}
    if options.budget == "per-layer":
        short: dict[str, dict[int, int]] = {key: {} for key in options.target}
        for budget in less:
            for layer, unit in budget.keys:
                short[UNITS[unit].target][layer] = int(budget.target) // len(budget.keys)
        return [short_message(key, options.target[key], layers) for key, layers in short.items() if layers]
    gone = [f"{key}: the model has none left" for key in options.target if key in COUNTED and key not in counted]
    return gone + [f"{b.name}: {b.asked:,.0f} asked for, {b.target:,.0f} can be kept" for b in less]


def write(role: str, artifact: Path, inputs: Mapping[str, Path], path: Path) -> None:
    """Write the mask of this pass's units to a file of its own; `role` is the file's form."""
    from sprunec.bmcook.masks.mask_forms import write_mask
    from sprunec.families.model_directory import read_kept
    from sprunec.masks.mask_tensors import load_scores

    units = {unit for _, unit in load_scores(inputs["scores"])}
    write_mask(path, role, units, *map(read_kept, (inputs["source"], inputs["model"], artifact)))


def report(document: dict[str, Any], node: Node, metrics: Mapping[str, Any]) -> None:
    """List what was asked and got, beside what the gates expected when their training ended."""
    scores = node.inputs["scores"]
    trained = next(entry["metrics"] for entry in document["passes"] if entry["name"] == scores)
    learned = {row["name"]: row for row in trained.get("budgets", ())}
    for row in metrics["budgets"]:
        soft = row if "expected" in row else learned.get(row["name"], {})
        said = {"pass": scores, "name": row["name"], "asked": row["asked"], "target": row["target"], "expected": None}
        said |= {"got": row["got"], "distance": None, "settled": True, "undecided": 0}
        document["budgets"].append({key: soft.get(key, value) for key, value in said.items()})


BINARIZE = Pass("binarize", 4, BinarizeOptions, ("model", "scores"), "masks", report=report)
