"""NumPy values in a file that is read with `weights_only`: their bytes are taken, NumPy's own constructors are not run.

torch refuses NumPy's reconstructing functions, for good reason: they take a dtype's layout from the file. Mask files of
others hold NumPy booleans, though, so these names stand for functions that know numbers and booleans and nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NUMBERS = {"b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"}


class Dtype:
    """What a file says about a dtype: a code such as `b1`, and the order of bytes."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"<": "<", ">": ">", "|": "="}[state[1]]

    def number(self) -> np.dtype[Any]:
        if not isinstance(self.code, str) or self.code not in NUMBERS:
            raise ValueError(f"NumPy values of dtype {self.code!r} are no masks")
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


class Array:
    """An array in a file; `value` once it is filled."""

    value: np.ndarray[Any, Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, raw = state
        if not isinstance(dtype, Dtype) or not isinstance(raw, bytes):
            raise ValueError("an array of objects is no mask")
        flat = np.frombuffer(raw, dtype.number()).astype(dtype.number().newbyteorder("="))
        self.value = flat.reshape(shape, order="F" if by_columns else "C")


def empty_array(*_: Any) -> Array:
    return Array()


def scalar(dtype: Dtype, raw: bytes) -> Any:
    return np.frombuffer(raw, dtype.number())[0].item()


def stand_ins() -> list[Any]:
    """For `torch.serialization.safe_globals`; the old and the new names of NumPy's room."""
    pairs: list[Any] = [(Dtype, "numpy.dtype"), (Array, "numpy.ndarray")]
    for room in ("numpy._core.multiarray", "numpy.core.multiarray"):
        pairs += [(scalar, f"{room}.scalar"), (empty_array, f"{room}._reconstruct")]
    return pairs
