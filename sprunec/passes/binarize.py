"""Scores, learned or cheap, into 0/1 masks: the best units, exactly as much as the target says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.durable import write_new
from sprunec.graph.options import MaskOptions
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass
from sprunec.units import COUNTED, INSIDE, Key

if TYPE_CHECKING:
    from torch import Tensor

    from sprunec.families.base_config import ModelConfig
    from sprunec.graph.builder import Builder
    from sprunec.graph.graph import Node
    from sprunec.masks.budgets import Budget
    from sprunec.plan.declared import PassSpec


@dataclass(frozen=True, kw_only=True)
class BinarizeOptions(MaskOptions):
    """What is kept of what was scored; `learned`: by gates that have learned another target."""

    allocation: str = ""
    multiple_of: Mapping[str, int] = field(default_factory=dict)
    learned: bool = False


def add(build: Builder, spec: PassSpec, scores: str) -> str:
    options = build.options(BinarizeOptions, spec, allocation=allocation(spec), learned="gates_for" in spec.options)
    notes: tuple[str, ...] = ()
    if options.learned:
        notes = (f"cut to another target by the gates learned for {target_words(spec, spec.options['gates_for'])}",)
    writes = {spec.options["mask_form"]: spec.options["save_mask"]} if "save_mask" in spec.options else {}
    inputs, provenance = {"model": build.model, "scores": scores}, build.provenance(options.unit, options.target)
    about = target_words(spec)
    return build.add("binarize", options, inputs, about=about, writes=writes, provenance=provenance, notes=notes)


def allocation(spec: PassSpec) -> str:
    """Say `scores` where the start of the gates says how many units each layer keeps, and there is a choice left.

    Of sublayers it says which, so that a pass over them alone would have nothing to learn.
    """
    free = spec.options["budget"] == "global" and not spec.options["tie_heads"]
    free = free and not set(spec.options["unit"]).isdisjoint(INSIDE)
    return "scores" if free and spec.options.get("allocation") == "scores" else ""


def target_words(spec: PassSpec, target: Mapping[str, Any] | None = None) -> str:
    words = ", ".join(f"{name} -> {value}" for name, value in (target or spec.options["target"]).items())
    words += "".join(f", {name} in multiples of {count}" for name, count in spec.options["multiple_of"].items())
    scope = "the same in all layers" if spec.options["tie_heads"] else spec.options["budget"]
    shared = f", by {spec.options['criterion']}" if allocation(spec) else ""
    return f"{words} ({scope}{shared})"


def run(job: Job[BinarizeOptions]) -> dict[str, Any]:
    from sprunec.masks.budgets import allocated, fill_all, make_budgets
    from sprunec.masks.mask_tensors import START, load_scores

    config, options, scores = job.config(), job.options, load_scores(job.inputs["scores"])
    wanted = (options.unit, options.target, options.budget, options.tie_heads, options.multiple_of)
    budgets = make_budgets(config, *wanted)
    shared = allocated(budgets, load_scores(job.inputs["scores"] / START)) if options.allocation else budgets
    before = job.kept()
    kept = before.then({key: mask.tolist() for key, mask in fill_all(shared, scores).items()})
    write_new(job.out / "kept.json", json.dumps(kept.to_json()))
    after = config.cut(before, kept)
    rows = [{"name": b.name, "asked": b.asked, "target": b.target, "got": b.measure(after)} for b in budgets]
    metrics: dict[str, Any] = {"budgets": rows, "parameters": after.parameters()}
    metrics |= _distance(budgets, scores, rows) if options.learned else {}
    short = _shortfalls(config, options, budgets)
    return metrics | ({"notes": metrics.get("notes", []) + short} if short else {})


def _shortfalls(config: ModelConfig, options: BinarizeOptions, budgets: Sequence[Budget]) -> list[str]:
    """Tell what was asked for and is not there."""
    from sprunec.plan.planned_sizes import short_layers, short_message

    if options.budget == "per-layer":
        found = []
        for key, wanted in options.target.items():
            most = short_layers(config.layers, key, wanted, options.multiple_of.get(key, 1))
            short = {index: count for index, count in most.items() if count is not None}
            found += [short_message(key, wanted, short)] if short else []
        return found
    counted = {budget.name for budget in budgets}
    gone = [f"{key}: the model has none left" for key in options.target if key in COUNTED and key not in counted]
    less = [f"{b.name}: {b.asked:,.0f} asked for, {b.target:,.0f} can be kept" for b in budgets if b.target < b.asked]
    return gone + less


def _distance(budgets: Sequence[Budget], scores: Mapping[Key, Tensor], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Measure how far gates that learned another target are from this one, by budget, and in a note."""
    from sprunec.masks.learn import settling

    soft = [settling(budget, scores) for budget in budgets]
    worst = max(soft, key=lambda row: abs(row["expected"] - row["target"]) / row["full"])
    words = f"{worst['name']}: the gates expect {worst['expected']:.2f}, the target is {worst['target']:g}"
    settled = "settled" if all(row["settled"] for row in soft) else "not settled"
    return {"budgets": [row | more for row, more in zip(rows, soft, strict=True)], "notes": [f"{words}; {settled}"]}


def write(role: str, artifact: Path, inputs: Mapping[str, Path], path: Path) -> None:
    """Write the mask of this pass's units to a file of its own; `role` is the file's form."""
    from sprunec.bmcook.masks.mask_forms import write_mask
    from sprunec.families.model_directory import read_kept
    from sprunec.masks.mask_tensors import load_scores

    units = {unit for _, unit in load_scores(inputs["scores"])}
    whole, before, after = (read_kept(place) for place in (inputs["source"], inputs["model"], artifact))
    write_mask(path, role, units, whole, before, after)


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
