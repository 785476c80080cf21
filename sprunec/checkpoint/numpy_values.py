"""NumPy's values in a pickle, made without NumPy's own constructors, which take a dtype's layout from the file.

Mask files hold NumPy booleans, and data sets arrays of whole numbers; the names in them stand for functions that know
plain numbers and booleans and nothing else.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sprunec.checkpoint.safe_pickle import Refused, brief

NUMBERS = ("b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")


class Dtype:
    """What a file says about a dtype: a code such as `b1`, and the order of bytes."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"<": "<", ">": ">", "|": "="}[state[1]]

    def number(self) -> np.dtype[Any]:
        if self.code not in NUMBERS:
            raise Refused(f"NumPy values of dtype {brief(self.code)}, which are no numbers")
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


class Array:
    """An array in a file; `value` once it is filled, which a hostile file may never do."""

    value: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, raw = state
        if not isinstance(dtype, Dtype) or not isinstance(raw, bytes | bytearray):
            raise Refused("an array of objects")
        flat = np.frombuffer(raw, dtype.number()).astype(dtype.number().newbyteorder("="))
        if math.prod(shape) != flat.size:
            raise Refused(f"an array of shape {brief(shape)} with {flat.size} numbers in it")
        self.value = flat.reshape(shape, order="F" if by_columns else "C")


def _from_buffer(raw: bytes, dtype: Dtype, shape: tuple[int, ...], order: str) -> Array:
    found = Array()
    found.__setstate__((1, shape, dtype, order == "F", raw))
    return found


def _scalar(dtype: Dtype, raw: bytes) -> Any:
    return np.frombuffer(raw, dtype.number())[0].item()


def _encode(text: str, encoding: str) -> bytes:
    """Make bytes as protocol 2 writes them."""
    if encoding != "latin1":
        raise Refused(f"the encoding {brief(encoding)}")
    return text.encode(encoding)


# What "module.name" stands for, as `load_pickle` takes it; an array's class is only ever passed on.
NAMES: dict[str, Any] = {"numpy.dtype": Dtype, "numpy.ndarray": Array, "_codecs.encode": _encode}
for _package in ("numpy._core", "numpy.core"):  # the new name and the old
    NAMES[f"{_package}.multiarray.scalar"] = _scalar
    NAMES[f"{_package}.multiarray._reconstruct"] = lambda *_: Array()
    NAMES[f"{_package}.numeric._frombuffer"] = _from_buffer


def stand_ins() -> list[Any]:
    """Give the same to `torch.serialization.safe_globals`."""
    return [(given, name) for name, given in NAMES.items()]
