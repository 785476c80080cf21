"""Masks of BMCook's forms onto a model: which row is which sublayer, and which column which unit.

A file's rows count the sublayers of the plan's input model, or those that the model still has when the pass is reached,
or those that the layer masks of the same pass leave. Each of these is a part of the one before, so the number of rows
tells which is meant. Layer masks come first, whatever the order of the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sprunec.bmcook.masks.mask_forms import MODULES, MaskTensor
from sprunec.errors import InputError
from sprunec.masks.layer_masks import Masks, add, left_by, row_mask
from sprunec.units import INSIDE, Kept

INPUT, HERE, LEFT = "the plan's input model", "the model at this pass", "the model that the layer masks leave"
ALL = "the model with all its layers"


def match(files: Sequence[Sequence[MaskTensor]], whole: Kept, entering: Kept, masks: Masks) -> list[str]:
    """Add the masks of all files to `masks`: what one of them removes is gone; give notes of what was not applied.

    Args:
        whole: the plan's input model.
        entering: what the model still has at this pass.

    Raises:
        InputError: a mask fits none of the models that it could be for.
    """
    models = {INPUT: whole, HERE: entering}
    notes = []
    for found in files:
        if layers := [mask for mask in found if mask.unit not in INSIDE]:
            more, note = _layer_masks(layers, models)
            add(masks, more)
            notes += [note] if note else []
    models[LEFT] = _left(models, masks)
    for mask in (mask for found in files for mask in found if mask.unit in INSIDE):
        add(masks, _fine_masks(mask, models))
    return notes


def _left(models: Mapping[str, Kept], masks: Masks) -> Kept:
    return left_by(masks, models[INPUT], models[HERE])


def _layers(mask: MaskTensor, kept: Kept) -> list[int]:
    """The layers that have such a sublayer; the plugin's file counts blocks that have lost both of theirs, too."""
    every = mask.form == "plugin" and mask.unit == "block" and len(mask.kept) == len(kept)
    return [index for index in range(len(kept)) if every or kept.has(index, mask.unit)]


def _layers_of_rows(masks: list[MaskTensor], models: Mapping[str, Kept]) -> tuple[list[list[int]], dict[str, str]]:
    """The layers that each mask's rows stand for, counted on the smallest model that has as many of all; and how many
    each model has, the largest first."""
    form, every = masks[0].form, range(len(models[INPUT]))
    counted = {} if form == "bmcook" else {ALL: [list(every) for _ in masks]}
    if form != MODULES:
        counted |= {name: [_layers(mask, kept) for mask in masks] for name, kept in models.items()}
    fits = [each for each in counted.values() if list(map(len, each)) == [len(mask.kept) for mask in masks]]
    return fits[-1] if fits else [], {name: _join(map(len, each)) for name, each in counted.items()}


def _layer_masks(found: list[MaskTensor], models: Mapping[str, Kept]) -> tuple[Masks, str]:
    """The masks of one file's sublayers, and a note where there is nothing to do."""
    path, rows = found[0].path, [len(mask.kept) for mask in found]
    for mask in found:
        if len(mask.kept) and mask.kept.size(1) != 1:
            message = f"{mask.key} has {mask.kept.size(1)} columns, and a sublayer is kept or removed as a whole"
            raise InputError.at(path, message, "give one value a row")
    layers, counts = _layers_of_rows(found, models)
    if layers:
        pairs = zip(found, layers, strict=True)
        masks = {(index, m.unit): kept for m, each in pairs for index, kept in zip(each, m.kept, strict=True)}
        gone = not all(map(bool, masks.values())) and _left(models, masks) == models[HERE]
        return masks, f"{path.name} was applied already: every sublayer that it removes is gone" if gone else ""
    ones = [int(mask.kept.sum()) for mask in found] if max(rows) <= len(models[INPUT]) else []
    if ones == [len(_layers(mask, models[HERE])) for mask in found]:
        kept = f"it keeps {_join(ones)} of {_join(rows)} sublayers, and so many are left"
        return {}, f"{path.name} was applied already: {kept}"
    keys = _join(dict.fromkeys(mask.key for mask in found))
    keep = f" and keeps {_join(ones)} of them" if ones else ""
    raise _unfit(path, f"{keys}: the file has {_join(rows)} rows{keep}", counts)


def _fine_masks(mask: MaskTensor, models: Mapping[str, Kept]) -> Masks:
    """The masks of units inside sublayers: each (units of the input model's layer,)."""
    path, key, unit, kept = mask.path, mask.key, mask.unit, mask.kept
    layers, counts = _layers_of_rows([mask], models)
    if not layers:
        raise _unfit(path, f"{key} has {len(kept)} rows", counts)
    # the columns are the units of the model whose widest layer has as many
    widths = {name: max((len(models[name].units(k, unit)) for k in layers[0]), default=0) for name in (INPUT, HERE)}
    model = next((models[name] for name, width in widths.items() if width == kept.size(1)), None)
    if model is None:
        raise _unfit(path, f"{key} has {kept.size(1)} columns", widths, "units in its widest layer")
    masks = {}
    for layer, row in zip(layers[0], kept.tolist(), strict=True):
        if whole := models[INPUT].units(layer, unit):
            masks[layer, unit] = row_mask(path, key, layer, row, model.units(layer, unit), whole)
    return masks


def _unfit(path: Path, what: str, counts: Mapping[str, object], of: str = "such sublayers") -> InputError:
    """An error that names each count once, the largest model's first."""
    named: dict[str, str] = {}
    for name, count in counts.items():
        named.setdefault(str(count), name)
    told = ", ".join(f"{name} has {count}" for count, name in named.items())
    hint = "give a mask that was made for this model, or for the plan's input model"
    return InputError.at(path, f"{what}; {told} {of}", hint)


def _join(values: Iterable[object]) -> str:
    return " and ".join(map(str, values))
