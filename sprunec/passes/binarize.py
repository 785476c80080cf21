"""Scores, learned or cheap, into 0/1 masks: the best units, exactly as much as the target says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sprunec.durable import write_new
from sprunec.families.cpm_ant.config import ModelConfig, kept_to_json
from sprunec.families.model_directory import read_kept
from sprunec.masks.budgets import COUNTS, Budget, fill_all, make_budgets, shared_out
from sprunec.masks.learn import settling
from sprunec.masks.mask_tensors import START, load_scores
from sprunec.masks.unit_counts import Key, apply_masks
from sprunec.passes.bench import config_of
from sprunec.passes.job import Job
from sprunec.plan.shortfalls import short_layers, short_words


def run(job: Job) -> dict[str, Any]:
    config, options = config_of(job), job.options
    scores = load_scores(job.inputs["scores"])
    wanted = (options["unit"], options["target"], options["budget"], options["tie_heads"])
    budgets = make_budgets(config, *wanted, options.get("multiple_of", {}))
    inside = shared_out(budgets, load_scores(job.inputs["scores"] / START)) if "allocation" in options else budgets
    masks = fill_all(inside, scores)
    before = read_kept(job.inputs["model"])
    kept = apply_masks(before, masks)
    write_new(job.out / "kept.json", json.dumps(kept_to_json(kept)))
    after = config.cut(before, kept)
    rows = [
        {"name": budget.name, "asked": budget.asked, "target": budget.target, "got": budget.measure(after)}
        for budget in budgets
    ]
    metrics: dict[str, Any] = {"budgets": rows, "parameters": after.parameters()}
    metrics |= _distance(budgets, scores, rows) if options.get("learned") else {}
    short = _shortfalls(config, options, budgets)
    return metrics | ({"notes": metrics.get("notes", []) + short} if short else {})


def _shortfalls(config: ModelConfig, options: Mapping[str, Any], budgets: Sequence[Budget]) -> list[str]:
    """What was asked for and is not there, in words."""
    if options["budget"] == "per-layer":
        multiples, found = options.get("multiple_of", {}), []
        for key, wanted in options["target"].items():
            short = short_layers(config.layers, key, wanted, multiples.get(key, 1))
            short = {index: most for index, most in short.items() if most is not None}
            found += [short_words(key, wanted, short)] if short else []
        return found
    counted = {budget.name for budget in budgets}
    gone = [f"{key}: the model has none left" for key in options["target"] if key in COUNTS and key not in counted]
    less = [f"{b.name}: {b.asked:,.0f} asked for, {b.target:,.0f} can be kept" for b in budgets if b.target < b.asked]
    return gone + less


def _distance(
    budgets: Sequence[Budget], log_alphas: Mapping[Key, Tensor], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """How far gates that learned another target are from this one, by budget, and in words."""
    soft = [settling(budget, log_alphas) for budget in budgets]
    worst = max(soft, key=lambda row: abs(row["expected"] - row["target"]) / row["full"])
    words = f"{worst['name']}: the gates expect {worst['expected']:.2f}, the target is {worst['target']:g}"
    settled = "settled" if all(row["settled"] for row in soft) else "not settled"
    return {"budgets": [row | more for row, more in zip(rows, soft, strict=True)], "notes": [f"{words}; {settled}"]}


def write(role: str, artifact: Path, inputs: Mapping[str, Path], path: Path) -> None:
    """The mask of this pass's units as a file of its own; `role` is the file's form."""
    from sprunec.bmcook.masks.mask_forms import write_mask

    units = {unit for _, unit in load_scores(inputs["scores"])}
    whole, before, after = (read_kept(place) for place in (inputs["source"], inputs["model"], artifact))
    write_mask(path, role, units, whole, before, after)
