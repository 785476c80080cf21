"""What stands for one layer in a file: indices, or one value a unit; as tensors, arrays or lists."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sprunec.checkpoint.safe_pickle import brief
from sprunec.errors import InputError
from sprunec.mask_files.forms import Rules
from sprunec.masks.given_values import as_tensor, binary, in_words, is_readable
from sprunec.masks.layer_masks import Listed

NUMBER = re.compile(r"0|[1-9]\d{0,8}")
MOST_LAYERS = 100_000
LIST = "a list of indices (whole numbers) or of one boolean a unit"


class Rows(NamedTuple):
    """What is listed, by layer; and how many true values were a number other than 1."""

    layers: dict[int, Listed]
    soft: int


def layer_number(key: Any) -> int | None:
    """Read the number of a layer: a whole number, or its digits."""
    if isinstance(key, str):
        return int(key) if NUMBER.fullmatch(key) else None
    return key if type(key) is int else None


def rows_of(path: Path, key: str, value: Any, rules: Rules, *, as_mask: bool = False) -> Rows:
    """Read one layer after the other: of a mapping by its number, of a list or a tensor in order.

    Args:
        as_mask: whole numbers are values of a mask, too, and no indices.

    Raises:
        InputError: a layer has no such number, two have the same, or what stands there is none of these.
    """
    value, layers, soft = as_tensor(value), {}, 0
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif (isinstance(value, list | tuple) or (is_readable(value) and value.dim())) and len(value) <= MOST_LAYERS:
        pairs = list(enumerate(value))
    else:
        raise InputError.at(path, f"{key} is {in_words(value)}, not one list or tensor a layer", f"give {LIST}")
    for name, given in pairs:
        number = layer_number(name)
        if number is None:
            raise InputError.at(path, f"{key} holds {brief(name)}, which is no layer's number", "count from 0")
        if number in layers:
            raise InputError.at(path, f"{key} names layer {number} twice", "name each layer once")
        layers[number], more = _listed(path, f"{key} of layer {number}", as_tensor(given), rules, as_mask)
        soft += more
    return Rows(layers, soft)


def _listed(path: Path, what: str, value: Any, rules: Rules, as_mask: bool) -> tuple[Listed, int]:
    if isinstance(value, list | tuple):
        value = _of_list(path, what, value)
    elif not is_readable(value):
        raise InputError.at(path, f"{what} is {in_words(value)}", f"give {LIST}")
    if sum(size > 1 for size in value.shape) > 1 or not (value.dim() or as_mask):
        message = f"{what} is {'a single number' if not value.dim() else f'a tensor of shape {list(value.shape)}'}"
        raise InputError.at(path, message, f"give {LIST}")
    value = value.detach().flatten()
    if as_mask or value.dtype is torch.bool or value.is_floating_point():
        ones, soft = binary(path, what, value[None], rules.threshold)
        return Listed(tuple(ones[0].tolist()), are_indices=False), soft
    if value.dtype is torch.uint8:
        raise InputError.at(path, f"{what} is of bytes, which may be indices or a mask", "save it as int64 or as bool")
    return Listed(tuple(value.tolist()), are_indices=True), 0


def _of_list(path: Path, what: str, items: list[Any] | tuple[Any, ...]) -> Tensor:
    """Make a tensor of booleans, of whole numbers, or of numbers."""
    values = [each.item() if is_readable(each := as_tensor(item)) and each.numel() == 1 else each for item in items]
    kinds = {type(value) for value in values}
    for kind, fine in ((torch.bool, {bool}), (torch.int64, {int}), (torch.float64, {int, float})):
        if kinds <= fine:
            try:
                return torch.tensor(values, dtype=kind if kinds else torch.int64)
            except (OverflowError, RuntimeError, ValueError):  # a whole number of any size
                break
    if strange := [value for value in values if type(value) not in (bool, int, float)]:
        raise InputError.at(path, f"{what} holds {brief(strange[0])}, which is no index", f"give {LIST}")
    if bool in kinds:
        raise InputError.at(path, f"{what} has booleans among numbers", f"give {LIST}")
    raise InputError.at(path, f"{what} holds {brief(max(values, key=abs))}, which is no index", f"give {LIST}")
