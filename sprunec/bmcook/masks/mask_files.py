"""Masks written to files: in BMCook's form, in that of its sprune plugin, and as CPM-Live's `mask_modules`.

In the first two 1 keeps, rows are sublayers, the i-th row the i-th that the model has, and columns are the units of the
plan's input model. In `mask_modules` every layer has a pair, and true removes. `matching` reads all of them.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprunec.checkpoint.tensors import read_state
from sprunec.checkpoint.writer import save_pt, save_tensors
from sprunec.durable import put_file
from sprunec.units import INSIDE, SUBLAYERS, Kept

BMCOOK_KEYS = {"head": "heads_z", "dim_head": "dim_head_z", "dim_ff": "dimff_z"}
PLUGIN_KEYS = {
    "block": "transformer",
    "attention": "att",
    "feed_forward": "ffn",
    "head": "num_heads",
    "dim_head": "dim_head",
    "dim_ff": "dim_ff",
}


def write_masks(directory: Path, before: Kept, after: Kept) -> None:
    """layer_mask.pt, head_mask.pt, dim_head_mask.pt and dimff_mask.pt; a row whose sublayer went is all 0."""
    directory.mkdir(parents=True, exist_ok=True)
    names = {"block": "layer_mask", "head": "head_mask", "dim_head": "dim_head_mask", "dim_ff": "dimff_mask"}
    for unit, name in names.items():
        save_pt(_bmcook({unit}, before, before, after), directory / f"{name}.pt")


def write_mask(path: Path, form: str, units: Collection[str], whole: Kept, before: Kept, after: Kept) -> None:
    """What one pass has made of `units`, as one file, put in place whole; a file with this content is left alone.

    Args:
        form: bmcook, plugin or mask_modules; the last as JSON if the path ends so.
        whole: the plan's input model, whose units the columns are.
        before: what entered the pass; a row per sublayer that it has.
        after: what the pass keeps.

    Raises:
        OSError: the file cannot be written; what was there is as it was.
    """
    if form == "mask_modules":
        content: Any = [[not after.has(index, kind) for kind in SUBLAYERS] for index in range(len(after))]
    else:
        content = (_bmcook if form == "bmcook" else _plugin)(set(units), whole, before, after)
    if form == "mask_modules" and path.suffix == ".json":
        put_file(path, (json.dumps(content) + "\n").encode())
        return
    buffer = io.BytesIO()
    torch.save(content, buffer)
    put_file(path, buffer.getvalue())


def _bmcook(units: set[str], whole: Kept, before: Kept, after: Kept) -> dict[str, Tensor]:
    """Float32; sublayers as (sublayers,), units inside them as (sublayers, units)."""
    masks: dict[str, Tensor] = {}
    if not units <= INSIDE.keys():
        masks["self_att_layer_z"] = _present("attention", before, after)
        masks["cross_att_layer_z"] = torch.zeros(0)
        masks["ffn_layer_z"] = _present("feed_forward", before, after)
    return masks | {key: _rows(unit, whole, before, after) for unit, key in BMCOOK_KEYS.items() if unit in units}


def _plugin(units: set[str], whole: Kept, before: Kept, after: Kept) -> OrderedDict[str, Tensor]:
    """Float16; (sublayers, units), where a sublayer as a whole is one unit."""
    masks: OrderedDict[str, Tensor] = OrderedDict()
    for unit, key in PLUGIN_KEYS.items():
        if unit in units:
            whole_ones = unit not in INSIDE
            rows = _present(unit, before, after)[:, None] if whole_ones else _rows(unit, whole, before, after)
            masks[key] = rows.half()
    return masks


def _present(unit: str, before: Kept, after: Kept) -> Tensor:
    """(sublayers of `before`,) float32: which of them, or for blocks of the layers, `after` still has."""
    there = [index for index in range(len(before)) if before.has(index, unit)]
    return torch.tensor([float(after.has(index, unit)) for index in there])


def _rows(unit: str, whole: Kept, before: Kept, after: Kept) -> Tensor:
    """(sublayers of `before`, units of `whole`) float32; where layers differ in width, short rows end in zeros."""
    there = [index for index in range(len(before)) if before.has(index, unit)]
    width = max((len(whole.units(index, unit)) for index in there), default=0)
    rows = torch.zeros(len(there), width)
    for row, index in zip(rows, there, strict=True):
        kept = set(after.units(index, unit))
        row[: len(whole.units(index, unit))] = torch.tensor([float(i in kept) for i in whole.units(index, unit)])
    return rows


# --- scores and log-alphas, by (layer, unit) ---


START = "start"  # beside learned scores, those that their gates started from


def save_scores(directory: Path, scores: Mapping[tuple[int, str], Tensor]) -> None:
    directory.mkdir(exist_ok=True)
    tensors = {f"{layer}.{unit}": value.detach().clone() for (layer, unit), value in scores.items()}
    save_tensors(tensors, directory / "scores.safetensors")


def load_scores(directory: Path) -> dict[tuple[int, str], Tensor]:
    pairs = ((name.split("."), value) for name, value in read_state(directory / "scores.safetensors").items())
    scores = {(int(layer), unit): value for (layer, unit), value in pairs}
    return dict(sorted(scores.items()))
