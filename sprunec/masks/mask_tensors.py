"""Masks and scores as tensors in files.

In a mask 1 keeps, rows are sublayers, the i-th row the i-th that the model has, and columns are the units of the plan's
input model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sprunec.checkpoint.reader import read_state
from sprunec.checkpoint.writer import save_pt, save_tensors
from sprunec.units import INSIDE, Kept, Key

FINE_KEYS = {"heads_z": "head", "dim_head_z": "dim_head", "dimff_z": "dim_ff"}
PUBLISHED = {"block": "layer_mask", "head": "head_mask", "dim_head": "dim_head_mask", "dim_ff": "dimff_mask"}
START = "start"  # beside learned scores, those that their gates started from


def write_masks(directory: Path, before: Kept, after: Kept) -> None:
    """Write layer_mask.pt, head_mask.pt, dim_head_mask.pt and dimff_mask.pt; a row whose sublayer went is all 0."""
    directory.mkdir(parents=True, exist_ok=True)
    for unit, name in PUBLISHED.items():
        save_pt(mask_tensors({unit}, before, before, after), directory / f"{name}.pt")


def mask_tensors(units: Collection[str], whole: Kept, before: Kept, after: Kept) -> dict[str, Tensor]:
    """Give what is kept of `units` in float32: sublayers as (sublayers,), units inside them as (sublayers, units).

    Args:
        whole: the plan's input model, whose units the columns are.
        before: what entered the pass; a row per sublayer that it has.
        after: what the pass keeps.
    """
    masks: dict[str, Tensor] = {}
    if not set(units) <= INSIDE.keys():
        masks["self_att_layer_z"] = present("attention", before, after)
        masks["cross_att_layer_z"] = torch.zeros(0)
        masks["ffn_layer_z"] = present("feed_forward", before, after)
    return masks | {key: mask_rows(unit, whole, before, after) for key, unit in FINE_KEYS.items() if unit in units}


def present(unit: str, before: Kept, after: Kept) -> Tensor:
    """(sublayers of `before`,) float32: which of them, or for blocks of the layers, `after` still has."""
    return torch.tensor([float(after.has(index, unit)) for index in range(len(before)) if before.has(index, unit)])


def mask_rows(unit: str, whole: Kept, before: Kept, after: Kept) -> Tensor:
    """(sublayers of `before`, units of `whole`) float32; where layers differ in width, short rows end in zeros."""
    there = [index for index in range(len(before)) if before.has(index, unit)]
    kept = [set(after.units(index, unit)) for index in there]
    rows = [[float(i in left) for i in whole.units(index, unit)] for index, left in zip(there, kept, strict=True)]
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows]).reshape(len(rows), width)


def save_scores(directory: Path, scores: Mapping[Key, Tensor]) -> None:
    """Save scores or log-alphas by (layer, unit)."""
    directory.mkdir(exist_ok=True)
    tensors = {f"{layer}.{unit}": value.detach().clone() for (layer, unit), value in scores.items()}
    save_tensors(tensors, directory / "scores.safetensors")


def load_scores(directory: Path) -> dict[Key, Tensor]:
    """Load what `save_scores` has saved."""
    pairs = ((name.split("."), value) for name, value in read_state(directory / "scores.safetensors").items())
    return dict(sorted(((int(layer), unit), value) for (layer, unit), value in pairs))
