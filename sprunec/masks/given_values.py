"""The values in a mask file: which of them are numbers, and which numbers close a unit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from sprunec.checkpoint.numpy_values import Array
from sprunec.errors import InputError

SOFT = 'binarize the mask first, or where 1 keeps give "threshold": what is above it is kept'


class Hard(NamedTuple):
    """A mask as booleans, and how many of its true ones were a number other than 1."""

    ones: Tensor
    soft: int


def binary(path: Path, key: str, values: Tensor, threshold: float | None) -> Hard:
    """Make a mask (rows, columns) of any numbers boolean: 1, or with a threshold what is above it, is true.

    Raises:
        InputError: a value is not finite, or without a threshold neither 0 nor 1.
    """
    values = values.double()
    wrong = ~torch.isfinite(values) if threshold is not None else ~((values == 0) | (values == 1))
    if len(found := wrong.nonzero()):
        row, column = found[0].tolist()
        first = f"{float(values[row, column]):g} in row {row}, column {column}"
        other = "that are not finite" if threshold is not None else "other than 0 and 1"
        raise InputError.at(path, f"{key} holds {len(found):,} values {other}, the first {first}", SOFT)
    ones = values > (0.0 if threshold is None else threshold)
    return Hard(ones, int((values[ones] != 1).sum()))


def as_tensor(value: Any) -> Any:
    """Give NumPy's array as a tensor, anything else as it is."""
    return torch.from_numpy(value.value.copy()) if isinstance(value, Array) and value.value is not None else value


def is_readable(value: object, dtype: torch.dtype | None = None) -> TypeGuard[Tensor]:
    """Tell whether it is a tensor whose numbers can be read."""
    if not isinstance(value, Tensor) or value.is_nested or value.is_quantized or value.layout is not torch.strided:
        return False
    return not value.is_meta and not value.is_complex() and dtype in (None, value.dtype)


def in_words(value: Any, within: bool = False) -> str:
    """Say what a value is, of any size."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor"
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list | tuple) and len(value) <= 3 and not within:
        return f"[{', '.join(in_words(item, within=True) for item in value)}]"
    size = f" of length {len(value)}" if isinstance(value, list | tuple | Mapping) else ""
    return f"a {type(value).__name__}{size}"
