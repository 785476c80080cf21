"""Scores, learned or cheap, into 0/1 masks: the best units, exactly as much as the target says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sprunec.masks.budgets import fill_all, make_budgets
from sprunec.masks.files import load_scores, write_mask
from sprunec.masks.units import apply_masks
from sprunec.model.checkpoint import read_kept
from sprunec.model.config import kept_to_json
from sprunec.passes.bench import config_of
from sprunec.passes.job import Job


def run(job: Job) -> dict[str, Any]:
    config, options = config_of(job), job.options
    scores = load_scores(job.inputs["scores"])
    budgets = make_budgets(config, options["unit"], options["target"], options["budget"])
    masks = fill_all(budgets, scores)
    before = read_kept(job.inputs["model"])
    kept = apply_masks(before, masks)
    (job.out / "kept.json").write_text(json.dumps(kept_to_json(kept)))
    after = config.cut(before, kept)
    rows = [{"name": budget.name, "target": budget.target, "got": budget.measure(after)} for budget in budgets]
    return {"budgets": rows, "parameters": after.parameters()}


def write(role: str, artifact: Path, inputs: Mapping[str, Path], path: Path) -> None:
    """The mask of this pass's units as a file of its own; `role` is the file's form."""
    units = {unit for _, unit in load_scores(inputs["scores"])}
    whole, before, after = (read_kept(place) for place in (inputs["source"], inputs["model"], artifact))
    write_mask(path, role, units, whole, before, after)
