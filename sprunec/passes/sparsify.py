"""Make weights 2:4 sparse: two of every four are zero from here on; the passes that train hold them there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprunec.errors import InputError
from sprunec.masks.two_four import Pattern, choose, density, refuse_uneven, short_tiles
from sprunec.masks.two_four_files import read_mask_file, save_pattern, write_pattern
from sprunec.model.checkpoint import open_model_tensors, read_kept, save_model
from sprunec.model.shapes import Shape, expected_tensors
from sprunec.passes.bench import config_of
from sprunec.passes.job import Job
from sprunec.plan.sparse import targeted


def run(job: Job) -> dict[str, Any]:
    config, state = config_of(job), dict(open_model_tensors(job.inputs["model"]))
    shapes = expected_tensors(config)
    targets = targeted(shapes, job.options["tensors"])
    if not targets:
        words = ", ".join(job.options["tensors"])
        raise InputError.at("tensors", f"no tensor that is left has one of {words} in its name", "name others")
    pattern = _pattern(job, state, shapes, targets)
    before = _size(state, pattern)
    for name, mask in pattern.items():
        state[name] = state[name].masked_fill(~mask, 0)
    save_model(job.out, config, read_kept(job.inputs["model"]), state)
    save_pattern(job.out, pattern)
    metrics = {
        "tensors": len(pattern),
        "density": density(state, pattern),
        "retained": _size(state, pattern) / before if before else 1.0,
        "parameters": config.parameters(),
    }
    return metrics | _notes(job, pattern)


def _pattern(
    job: Job, state: Mapping[str, Tensor], shapes: Mapping[str, Shape], targets: Mapping[str, Shape]
) -> Pattern:
    kind = job.options["pattern"]
    if "path" in job.files:
        return read_mask_file(job.files["path"][0], kind, shapes, targets)
    for name, shape in targets.items():
        refuse_uneven(kind, name, shape)
    return {name: choose(kind, name, state[name]) for name in targets}


def _size(state: Mapping[str, Tensor], pattern: Pattern) -> float:
    """The sum of all sizes |w| in the pattern's tensors."""
    return sum(float(state[name].abs().sum(dtype=torch.float64)) for name in pattern)


def _notes(job: Job, pattern: Pattern) -> dict[str, Any]:
    if job.options["pattern"] == "m4n2_1d":
        return {}
    short = sum(short_tiles(mask) for mask in pattern.values())
    tiles = sum(mask.numel() for mask in pattern.values()) // 16
    return {"notes": [f"{short:,} of {tiles:,} tiles keep 7 weights and could keep 8"]} if short else {}


def write(role: str, artifact: Path, inputs: Mapping[str, Path], path: Path) -> None:
    """The mask as a file in BMCook's form."""
    write_pattern(artifact, path)
