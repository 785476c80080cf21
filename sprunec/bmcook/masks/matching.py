"""Masks from files onto a model: which row is which sublayer, and which column which unit.

A file's rows count the sublayers of the plan's input model, or those that the model still has when the pass is reached,
or those that the layer masks of the same pass leave. Each of these is a part of the one before, so the number of rows
tells which is meant. Layer masks come first, whatever the order of the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sprunec.bmcook.masks.mask_forms import MaskTensor, read_mask_tensors
from sprunec.errors import InputError
from sprunec.units import INSIDE, Kept, Key

Masks = dict[Key, Tensor]
INPUT, HERE, LEFT = "the plan's input model", "the model at this pass", "the model that the layer masks leave"


@dataclass(frozen=True)
class Matched:
    """What mask files make of a model.

    Attributes:
        masks: bool, by (layer, unit), over the units of the plan's input model.
        kept: what is left.
        notes: what was not applied, and why.
    """

    masks: Mapping[Key, Tensor]
    kept: Kept
    notes: tuple[str, ...]


def read_masks(paths: Sequence[Path], whole: Kept, entering: Kept | None = None) -> Matched:
    """Read the masks of all files together: what one of them removes is gone.

    Args:
        whole: the plan's input model.
        entering: what the model still has at this pass; None: everything.

    Raises:
        InputError: a file is damaged or of no known form, or a mask fits none of the models that it could be for.
    """
    models = {INPUT: whole, HERE: whole if entering is None else entering}
    files = [read_mask_tensors(path) for path in paths]
    masks: Masks = {}
    notes: list[str] = []
    for found in files:
        note = _add_layer_masks(masks, [mask for mask in found if mask.unit not in INSIDE], models)
        notes += [note] if note else []
    models[LEFT] = _left(models, masks)
    for mask in (mask for found in files for mask in found if mask.unit in INSIDE):
        _add(masks, _fine_masks(mask, models))
    return Matched(masks, _left(models, masks), tuple(notes))


def _references(mask: MaskTensor, models: Mapping[str, Kept]) -> dict[str, list[int]]:
    """The layers that the rows may stand for, by the name of the model that they count; the largest model first."""
    every = {"the model with all its layers": list(range(len(models[INPUT])))}
    found = {name: _layers(mask, kept) for name, kept in models.items()}
    return {"mask_modules": every, "plugin": every | found}.get(mask.form, found)


def _layers(mask: MaskTensor, kept: Kept) -> list[int]:
    """The layers that have such a sublayer; the plugin's file counts blocks that have lost both of theirs, too."""
    if mask.form == "plugin" and mask.unit == "block" and mask.rows == len(kept):
        return list(range(len(kept)))
    return [index for index in range(len(kept)) if kept.has(index, mask.unit)]


def _add(masks: Masks, more: Masks) -> None:
    for key, mask in more.items():
        masks[key] = masks[key] & mask if key in masks else mask


def _left(models: Mapping[str, Kept], masks: Masks) -> Kept:
    return models[HERE].common(models[INPUT].then({key: mask.tolist() for key, mask in masks.items()}))


def _add_layer_masks(masks: Masks, found: list[MaskTensor], models: Mapping[str, Kept]) -> str:
    """Add the masks of one file's sublayers, all counted on one model; gives a note where there is nothing to do."""
    if not found:
        return ""
    path, rows = found[0].path, [mask.rows for mask in found]
    for mask in found:
        if mask.rows and mask.columns != 1:
            message = f"{mask.key} has {mask.columns} columns, and a sublayer is kept or removed as a whole"
            raise InputError.at(path, message, "give one value a row")
    references = [_references(mask, models) for mask in found]
    for name in reversed(references[0]):
        layers = [each[name] for each in references]
        if [len(each) for each in layers] == rows:
            own = _rows_by_layer(found, layers)
            _add(masks, own)
            gone = any(not bool(mask) for mask in own.values()) and _left(models, own) == models[HERE]
            return f"{path.name} was applied already: every sublayer that it removes is gone" if gone else ""
    ones = [int(mask.kept().sum()) for mask in found] if max(rows) <= len(models[INPUT]) else []
    if ones == [len(_layers(mask, models[HERE])) for mask in found]:
        kept = f"it keeps {_join(ones)} of {_join(rows)} sublayers, and so many are left"
        return f"{path.name} was applied already: {kept}"
    keys = _join(dict.fromkeys(mask.key for mask in found))
    keep = f" and keeps {_join(ones)} of them" if ones else ""
    counts = {name: _join(len(each[name]) for each in references) for name in references[0]}
    raise _unfit(path, f"{keys}: the file has {_join(rows)} rows{keep}", counts)


def _rows_by_layer(found: list[MaskTensor], layers: list[list[int]]) -> Masks:
    masks: Masks = {}
    for mask, rows in zip(found, layers, strict=True):
        kept = mask.kept().reshape(-1)
        _add(masks, {(index, mask.unit): kept[row : row + 1] for row, index in enumerate(rows)})
    return masks


def _fine_masks(mask: MaskTensor, models: Mapping[str, Kept]) -> Masks:
    """The masks of units inside sublayers."""
    references, whole = _references(mask, models), models[INPUT]
    layers = next((found for found in reversed(references.values()) if len(found) == mask.rows), None)
    if layers is None:
        counts = {name: len(found) for name, found in references.items()}
        raise _unfit(mask.path, f"{mask.key} has {mask.rows} rows", counts)
    # the columns are the units of the model whose widest layer has as many
    widths = {name: max((len(models[name].units(k, mask.unit)) for k in layers), default=0) for name in (INPUT, HERE)}
    columns = next((models[name] for name, width in widths.items() if width == mask.columns), None)
    if columns is None:
        raise _unfit(mask.path, f"{mask.key} has {mask.columns} columns", widths, "units in its widest layer")
    rows = zip(layers, mask.kept(), strict=True)
    return {(k, mask.unit): _row(mask, k, row, columns, whole) for k, row in rows if whole.has(k, mask.unit)}


def _row(mask: MaskTensor, index: int, row: Tensor, columns: Kept, whole: Kept) -> Tensor:
    """(units of the input model's layer,) bool."""
    units = columns.units(index, mask.unit)
    if bool(row[len(units) :].any()) and columns.has(index, mask.unit):
        last = int(row.nonzero().max())
        message = f"{mask.key} keeps unit {last} of layer {index}, which has {len(units)}"
        raise InputError.at(mask.path, message, "give zeros beyond a layer's width")
    kept = {unit for unit, keep in zip(units, row.tolist(), strict=False) if keep}
    return torch.tensor([unit in kept for unit in whole.units(index, mask.unit)])


def _unfit(path: Path, what: str, counts: Mapping[str, object], of: str = "such sublayers") -> InputError:
    """An error that names each count once, the largest model's first."""
    named: dict[str, str] = {}
    for name, count in counts.items():
        named.setdefault(str(count), name)
    told = ", ".join(f"{name} has {count}" for count, name in named.items())
    hint = "give a mask that was made for this model, or for the plan's input model"
    return InputError.at(path, f"{what}; {told} {of}", hint)


def _join(values: Iterable[object]) -> str:
    return " and ".join(str(value) for value in values)
