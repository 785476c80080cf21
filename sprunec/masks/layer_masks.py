"""What a file says of layers by their numbers, as masks over the units of the plan's input model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sprunec.errors import InputError
from sprunec.units import UNITS, Indices, Kept, Key, group_of

Masks = dict[Key, Tensor]  # (units of the input model's layer,) bool: which of them stay


class Listed(NamedTuple):
    """What is listed of one layer's units: their indices, or one boolean each."""

    entries: tuple[int, ...]
    are_indices: bool


class LayerMask(NamedTuple):
    """What one key of a file says of the units of some layers.

    Attributes:
        unit: None where the file does not name it.
        keeps: what is listed, or true, is kept; else it is removed, and a layer that is not there keeps all.
        soft: how many of the true ones were a number other than 1.
        asked: the options that said what the file does not.
    """

    path: Path
    key: str
    unit: str | None
    keeps: bool
    layers: Mapping[int, Listed]
    soft: int = 0
    asked: frozenset[str] = frozenset()


class Matched(NamedTuple):
    """What mask files make of a model: bool masks over the units of the plan's input model; what is left; and what was
    not applied, and why."""

    masks: Mapping[Key, Tensor]
    kept: Kept
    notes: tuple[str, ...]


def add(masks: Masks, more: Masks) -> None:
    """Remove also what `more` removes."""
    masks |= {key: mask & masks.get(key, mask) for key, mask in more.items()}


def left_by(masks: Masks, whole: Kept, entering: Kept) -> Kept:
    """Say what is left of `entering`, a part of the input model `whole`."""
    return entering.common(whole.then({key: mask.tolist() for key, mask in masks.items()}))


def masks_of(mask: LayerMask, unit: str, whole: Kept) -> Masks:
    """Match what a file says of units by their layers' numbers.

    Raises:
        InputError: it names a layer or a unit that the model has not, one twice, or says nothing of a layer where what
            is listed is kept.
    """
    _check_layers(mask, unit, whole)
    widest = max(len(whole.units(layer, unit)) for layer in range(len(whole)))
    masks: Masks = {}
    for layer, listed in mask.layers.items():
        units, row, several = whole.units(layer, unit), listed.entries, UNITS[unit].several
        if listed.are_indices:
            row = _row(mask, layer, row, len(units), several)
        elif len(row) not in (len(units), widest):
            message = f"{mask.key} has {len(row)} values for layer {layer}, which has {len(units)} {several}"
            raise InputError.at(mask.path, message, _remedy(unit, len(row), whole[layer]))
        listed_units = row_mask(mask.path, mask.key, layer, row, units, units, "keeps" if mask.keeps else "removes")
        if units:
            masks[layer, unit] = listed_units if mask.keeps else ~listed_units
    return masks


def _check_layers(mask: LayerMask, unit: str, whole: Kept) -> None:
    if wrong := [layer for layer in mask.layers if not 0 <= layer < len(whole)]:
        message = f"{mask.key} names layer {wrong[0]}, and the model has {len(whole)}, which count from 0"
        raise InputError.at(mask.path, message, "give a mask that was made for the plan's input model")
    there = [layer for layer in range(len(whole)) if whole.has(layer, unit)]
    several = UNITS[unit].several
    if without := [layer for layer in there if not whole.units(layer, unit)]:
        message = f"{mask.key} is of {several}, and layer {without[0]} has none of its own"
        raise InputError.at(mask.path, message, "give masks of units that the model has")
    if mask.keeps and (silent := [layer for layer in there if layer not in mask.layers]):
        message = f"{mask.key} says nothing of layer {silent[0]}, and what it lists is kept"
        raise InputError.at(mask.path, message, "list what every layer keeps: [] where it is nothing")
    if mask.asked and all(_is_either(listed, len(whole.units(layer, unit))) for layer, listed in mask.layers.items()):
        message = f"{mask.key} has a 0 or a 1 for each of the {several} of a layer: a mask, or indices"
        raise InputError.at(mask.path, message, "write a mask as booleans, and leave out lists of everything")


def _is_either(listed: Listed, width: int) -> bool:
    """Tell whether indices could as well be a mask whose booleans became numbers."""
    return listed.are_indices and 0 < width == len(listed.entries) and set(listed.entries) <= {0, 1}


def row_mask(
    path: Path, key: str, layer: int, row: Sequence[int], units: Indices, whole: Indices, does: str = "keeps"
) -> Tensor:
    """Give one layer's row over the units `whole` of the input model.

    Args:
        row: one value for each of `units`; behind them zeros.

    Raises:
        InputError: it has a 1 behind them.
    """
    if units and any(row[len(units) :]):
        message = f"{key} {does} unit {max(compress(range(len(row)), row))} of layer {layer}, which has {len(units)}"
        raise InputError.at(path, message, "give zeros beyond a layer's width")
    stay = set(compress(units, row))
    return torch.tensor([index in stay for index in whole], dtype=torch.bool)


def _row(mask: LayerMask, layer: int, indices: Sequence[int], width: int, several: str) -> tuple[int, ...]:
    """Make one value a unit of a list of indices."""
    outside = [index for index in indices if not 0 <= index < width]
    twice = [index for index, count in Counter(indices).items() if count > 1]
    if outside or twice:
        wrong = f"{outside[0]}" if outside else f"{twice[0]} twice"
        message = f"{mask.key} lists {wrong} for layer {layer}, which has {width} {several} from 0 on"
        raise InputError.at(mask.path, message, "list indices of the plan's input model, each once")
    listed = set(indices)
    return tuple(int(index in listed) for index in range(width))


def _remedy(unit: str, count: int, layer: Mapping[str, Indices]) -> str:
    """Tell of what a mask would fit."""
    fits = [UNITS[other].several for other, indices in layer.items() if other != unit and len(indices) == count]
    other = f"; the layer has {count} {' and '.join(fits)}" if fits else ""
    return f"give a mask that was made for the plan's input model, with one value a unit{other}"


def with_even_groups(kept: Kept, whole: Kept, path: Path) -> Kept:
    """Close the key-value groups whose heads are all gone; of the others each must keep as many.

    Raises:
        InputError: they do not; names the layer and the counts.
    """
    layers = list(kept)
    for number, layer in enumerate(kept):
        counts = {unit: len(indices) for unit, indices in whole[number].items()}
        if "kv_group" not in layer or "head" not in layer:
            continue
        left = Counter(group_of(head, counts) for head in layer["head"])
        if len(found := sorted(set(left.values()))) > 1:
            message = f"key-value groups of layer {number} would keep {' and '.join(map(str, found))} heads"
            raise InputError.at(path, message, "each must keep as many, or none: give such a mask, or one of kv_group")
        layers[number] = {**layer, "kv_group": tuple(group for group in layer["kv_group"] if group in left)}
    return Kept(layers)
