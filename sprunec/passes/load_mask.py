"""Masks from files, in the indices of the plan's input model."""

from __future__ import annotations

import json
from typing import Any

from sprunec.errors import InputError
from sprunec.masks.files import read_masks
from sprunec.masks.units import apply_masks
from sprunec.model.checkpoint import read_kept
from sprunec.model.config import LayerKept, kept_to_json
from sprunec.passes.job import Job


def run(job: Job) -> dict[str, Any]:
    everything, present = read_kept(job.inputs["source"]), read_kept(job.inputs["model"])
    masks = read_masks(job.files["paths"], everything)
    wanted = apply_masks(everything, masks)
    kept = tuple(_both(here, asked) for here, asked in zip(present, wanted, strict=True))
    if all(layer.heads is None and layer.dim_ff is None for layer in kept):
        raise InputError.at(job.files["paths"][0], "leaves nothing of the model")
    (job.out / "kept.json").write_text(json.dumps(kept_to_json(kept)))
    return {"files": [path.name for path in job.files["paths"]]}


def _both(left: LayerKept, right: LayerKept) -> LayerKept:
    heads, dims = _common(left.heads, right.heads), _common(left.dim_head, right.dim_head)
    attention = bool(heads) and bool(dims)
    inner = _common(left.dim_ff, right.dim_ff)
    return LayerKept(heads if attention else None, dims if attention else None, inner or None)


def _common(left: tuple[int, ...] | None, right: tuple[int, ...] | None) -> tuple[int, ...]:
    allowed = set(right or ())
    return tuple(index for index in left or () if index in allowed)
