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

from sprunec.bmcook.masks.mask_forms import Sheet, read_sheets
from sprunec.errors import InputError
from sprunec.units import INSIDE, Kept, Key

Masks = dict[Key, Tensor]


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


@dataclass(frozen=True)
class Level:
    """A model whose sublayers rows may count, and what to call it."""

    name: str
    kept: Kept

    def layers(self, sheet: Sheet) -> list[int]:
        """The layers that have such a sublayer; the plugin's file counts blocks that have lost both of theirs, too."""
        found = [index for index in range(len(self.kept)) if self.kept.has(index, sheet.unit)]
        emptied = sheet.form == "plugin" and sheet.unit == "block" and sheet.rows == len(self.kept)
        return list(range(len(self.kept))) if emptied else found


def read_masks(paths: Sequence[Path], whole: Kept, entering: Kept | None = None) -> Matched:
    """Masks of all files together: what one of them removes is gone.

    Args:
        whole: the plan's input model.
        entering: what the model still has at this pass; None: everything.

    Raises:
        InputError: a file is damaged or of no known form, or a mask fits none of the models that it could be for.
    """
    here = whole if entering is None else entering
    files = [read_sheets(path) for path in paths]
    masks: Masks = {}
    notes: list[str] = []
    for sheets in files:
        found, note = _layer_masks([sheet for sheet in sheets if sheet.unit not in INSIDE], whole, here)
        _merge(masks, found)
        notes += [note] if note else []
    left = _left(whole, here, masks)
    for sheet in (sheet for sheets in files for sheet in sheets if sheet.unit in INSIDE):
        _merge(masks, _fine_masks(sheet, whole, here, left))
    return Matched(masks, _left(whole, here, masks), tuple(notes))


def _levels(form: str, whole: Kept, here: Kept, left: Kept | None = None) -> list[Level]:
    """From the largest down; each is a part of the one before."""
    every = Level("the model with all its layers", Kept.all([dict.fromkeys(INSIDE, 1)] * len(whole)))
    levels = [Level("the plan's input model", whole), Level("the model at this pass", here)]
    levels += [Level("the model that the layer masks leave", left)] if left is not None else []
    return {"mask_modules": [every], "plugin": [every, *levels]}.get(form, levels)


def _merge(masks: Masks, more: Masks) -> None:
    for key, mask in more.items():
        masks[key] = masks[key] & mask if key in masks else mask


def _left(whole: Kept, here: Kept, masks: Masks) -> Kept:
    return here.common(whole.then({key: mask.tolist() for key, mask in masks.items()}))


# --- sublayers as a whole ---


def _layer_masks(sheets: list[Sheet], whole: Kept, here: Kept) -> tuple[Masks, str]:
    """The masks of one file's sublayers, all counted on one level, and a note where there is nothing to do."""
    if not sheets:
        return {}, ""
    path, rows = sheets[0].path, [sheet.rows for sheet in sheets]
    for sheet in sheets:
        if sheet.rows and sheet.columns != 1:
            message = f"{sheet.key} has {sheet.columns} columns, and a sublayer is kept or removed as a whole"
            raise InputError.at(path, message, "give one value a row")
    levels = _levels(sheets[0].form, whole, here)
    for level in reversed(levels):
        layers = [level.layers(sheet) for sheet in sheets]
        if [len(each) for each in layers] == rows:
            return _applied(sheets, layers, whole, here)
    ones = [int(sheet.kept().sum()) for sheet in sheets] if max(rows) <= len(whole) else []
    if ones == [len(Level("", here).layers(sheet)) for sheet in sheets]:
        kept = f"it keeps {_join(ones)} of {_join(rows)} sublayers, and so many are left"
        return {}, f"{path.name} was applied already: {kept}"
    keys = _join(dict.fromkeys(sheet.key for sheet in sheets))
    keep = f" and keeps {_join(ones)} of them" if ones else ""
    counts = {level.name: _join(len(level.layers(sheet)) for sheet in sheets) for level in levels}
    raise _unfit(path, f"{keys}: the file has {_join(rows)} rows{keep}", counts)


def _applied(sheets: list[Sheet], layers: list[list[int]], whole: Kept, here: Kept) -> tuple[Masks, str]:
    masks: Masks = {}
    for sheet, rows in zip(sheets, layers, strict=True):
        kept = sheet.kept().reshape(-1)
        _merge(masks, {(index, sheet.unit): kept[row : row + 1] for row, index in enumerate(rows)})
    removes = any(not bool(mask) for mask in masks.values())
    if removes and _left(whole, here, masks) == here:
        return masks, f"{sheets[0].path.name} was applied already: every sublayer that it removes is gone"
    return masks, ""


# --- units inside sublayers ---


def _fine_masks(sheet: Sheet, whole: Kept, here: Kept, left: Kept) -> Masks:
    levels = _levels(sheet.form, whole, here, left)
    counts = {level.name: len(level.layers(sheet)) for level in levels}
    level = next((level for level in reversed(levels) if counts[level.name] == sheet.rows), None)
    if level is None:
        raise _unfit(sheet.path, f"{sheet.key} has {sheet.rows} rows", counts)
    layers = level.layers(sheet)
    columns = _columns(sheet, layers, whole, here)
    rows = zip(layers, sheet.kept(), strict=True)
    return {
        (index, sheet.unit): _row(sheet, index, row, columns, whole)
        for index, row in rows
        if whole.has(index, sheet.unit)
    }


def _columns(sheet: Sheet, layers: Sequence[int], whole: Kept, here: Kept) -> Kept:
    """The model whose units the columns are: the widest layer's count tells."""
    widths = {}
    for name, kept in (("the plan's input model", whole), ("the model at this pass", here)):
        widths[name] = max((len(kept.units(index, sheet.unit)) for index in layers), default=0)
        if widths[name] == sheet.columns:
            return kept
    raise _unfit(sheet.path, f"{sheet.key} has {sheet.columns} columns", widths, "units in its widest layer")


def _row(sheet: Sheet, index: int, row: Tensor, columns: Kept, whole: Kept) -> Tensor:
    """(units of the input model's layer,) bool."""
    units = columns.units(index, sheet.unit)
    if bool(row[len(units) :].any()) and columns.has(index, sheet.unit):
        last = int(row.nonzero().max())
        message = f"{sheet.key} keeps unit {last} of layer {index}, which has {len(units)}"
        raise InputError.at(sheet.path, message, "give zeros beyond a layer's width")
    kept = {unit for unit, keep in zip(units, row.tolist(), strict=False) if keep}
    return torch.tensor([unit in kept for unit in whole.units(index, sheet.unit)])


def _unfit(path: Path, what: str, counts: Mapping[str, object], of: str = "such sublayers") -> InputError:
    """An error that names each count once, the largest model's first."""
    named: dict[str, str] = {}
    for name, count in counts.items():
        named.setdefault(str(count), name)
    words = ", ".join(f"{name} has {count}" for count, name in named.items())
    hint = "give a mask that was made for this model, or for the plan's input model"
    return InputError.at(path, f"{what}; {words} {of}", hint)


def _join(values: Iterable[object]) -> str:
    return " and ".join(str(value) for value in values)
