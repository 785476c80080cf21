"""Make weights 2:4 sparse: two of every four are zero from here on; the passes that train hold them there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprunec.checkpoint.reader import Tensors
from sprunec.checkpoint.writer import Output, as_outputs
from sprunec.errors import InputError
from sprunec.families.cpm_ant.shapes import expected_tensors
from sprunec.families.model_directory import open_model_tensors, read_kept, save_outputs
from sprunec.masks.two_four import Pattern, choose, density, refuse_uneven, save_pattern, short_tiles
from sprunec.passes.bench import config_of
from sprunec.passes.job import Job
from sprunec.plan.sparsity import targeted


def run(job: Job) -> dict[str, Any]:
    config, tensors = config_of(job), open_model_tensors(job.inputs["model"])
    kind, shapes = job.options["pattern"], expected_tensors(config)
    targets = targeted(shapes, job.options["tensors"])
    if not targets:
        parts = ", ".join(job.options["tensors"])
        raise InputError.in_option("tensors", f"no tensor that is left has one of {parts} in its name", "name others")
    if "path" in job.files:
        from sprunec.bmcook.masks.two_four_files import read_mask_file

        pattern = read_mask_file(job.files["path"][0], kind, shapes, targets)
    else:
        for name, shape in targets.items():
            refuse_uneven(kind, name, shape)
        pattern = {name: choose(kind, name, tensors[name]) for name in targets}
    outputs = as_outputs(tensors) | {name: _masked(tensors, name, mask) for name, mask in pattern.items()}
    save_outputs(job.out, config, read_kept(job.inputs["model"]), outputs)
    save_pattern(job.out, pattern)
    sparse, before = open_model_tensors(job.out), _size(tensors, pattern)
    metrics = {
        "tensors": len(pattern),
        "density": density(sparse, pattern),
        "retained": _size(sparse, pattern) / before if before else 1.0,
        "parameters": config.parameters(),
    }
    return metrics | (_notes(pattern) if kind == "m4n2_2d" else {})


def _masked(tensors: Tensors, name: str, mask: Tensor) -> Output:
    """Made when it is written, so that one tensor at a time is in memory."""
    return Output(tensors.shape(name), tensors.dtype(name), lambda: [tensors.copy(name).masked_fill_(~mask, 0)])


def _size(state: Mapping[str, Tensor], pattern: Pattern) -> float:
    """The sum of all sizes |w| in the pattern's tensors."""
    return sum(float(state[name].abs().sum(dtype=torch.float64)) for name in pattern)


def _notes(pattern: Pattern) -> dict[str, Any]:
    short = sum(short_tiles(mask) for mask in pattern.values())
    tiles = sum(mask.numel() for mask in pattern.values()) // 16
    return {"notes": [f"{short:,} of {tiles:,} tiles keep 7 weights and could keep 8"]} if short else {}


def write(role: str, artifact: Path, inputs: Mapping[str, Path], path: Path) -> None:
    """Write the mask as a file in BMCook's form."""
    from sprunec.bmcook.masks.two_four_files import write_pattern

    write_pattern(artifact, path)
