"""Weights read once, for their sha256 and for numbers that are not finite; needs no torch.

A float is NaN or infinite where all bits of its exponent are ones, whatever its width; so bfloat16, which numpy does
not know, is checked like the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprunec.checkpoint.safetensors_file import SIZES, Stored
from sprunec.durable import naming, read_into

CHUNK_BYTES = 8 * 2**20
MOST_PLACES = 4096
# By dtype: unsigned integers of its width, the bits of its exponent, and those of its mantissa.
BITS: dict[str, tuple[Any, int, int]] = {
    "F64": (np.uint64, 0x7FF0000000000000, 0x000FFFFFFFFFFFFF),
    "F32": (np.uint32, 0x7F800000, 0x007FFFFF),
    "F16": (np.uint16, 0x7C00, 0x03FF),
    "BF16": (np.uint16, 0x7F80, 0x007F),
}


@dataclass(frozen=True)
class NonFinite:
    """Numbers of one tensor that are none.

    Attributes:
        count: how many.
        nans: how many of them are NaN; the others are infinite.
        places: their indices, (count, dims); the first `MOST_PLACES` of them.
    """

    file: Path
    tensor: str
    count: int
    nans: int
    places: NDArray[np.int64]

    def __str__(self) -> str:
        kinds = [f"{self.nans:,} NaN"] if self.nans else []
        kinds += [f"{self.count - self.nans:,} infinite"] if self.count > self.nans else []
        first = f", the first at {self.places[0].tolist()}" if self.places.shape[1] else ""
        return f"{self.tensor} has {' and '.join(kinds)}{first}"


def read_weights(file: Path, places: dict[str, Stored]) -> tuple[str, list[NonFinite]]:
    """Hash a file, and find which of its tensors are not finite, in one reading.

    Args:
        places: where the tensors of this file lie.

    Raises:
        OSError: it cannot be read.
    """
    digest, suspects = hashlib.sha256(), set[str]()
    floats = {name: place for name, place in places.items() if place.dtype in BITS and place.extent}
    for first, overlap, window in _windows(file):
        digest.update(window[overlap:])
        suspects |= {name for name, place in floats.items() if name not in suspects and _has_any(place, first, window)}
    found = (_located(name, floats[name]) for name in floats if name in suspects)
    return digest.hexdigest(), [each for each in found if each is not None]


def _windows(file: Path) -> Iterator[tuple[int, int, memoryview]]:
    """Read the file in windows: which byte is the first, and how many have been in the window before, too.

    They overlap by the width of a number, so that none is cut in two everywhere.
    """
    widest = max(SIZES.values())
    buffer = memoryview(bytearray(widest + CHUNK_BYTES))
    overlap, first = 0, 0
    with naming(file), file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer[overlap : overlap + CHUNK_BYTES]):
            window = buffer[: overlap + count]
            yield first, overlap, window
            kept = min(widest, len(window))
            first += len(window) - kept
            buffer[:kept] = bytes(window[-kept:])
            overlap = kept


def _has_any(place: Stored, first: int, data: memoryview) -> bool:
    """Tell whether a number of the tensor within the window is not finite; gaps between its rows count, too."""
    size = SIZES[place.dtype]
    low = max(0, -((place.start - first) // size)) if first > place.start else 0
    high = min(place.extent, first + len(data) - place.start) // size
    if high <= low:
        return False
    start = place.start + low * size - first
    return bool(_all_ones(np.frombuffer(data, BITS[place.dtype][0], high - low, start), place.dtype).any())


def _all_ones(numbers: NDArray[Any], dtype: str) -> NDArray[Any]:
    known, mask = {"F32": np.float32, "F64": np.float64}.get(dtype), numbers.dtype.type(BITS[dtype][1])
    # numpy's own test is twice as fast where it has one
    found: NDArray[Any] = (numbers & mask) == mask if known is None else ~np.isfinite(numbers.view(known))
    return found


def _located(name: str, place: Stored) -> NonFinite | None:
    """Count them in the tensor itself, and find where they are."""
    count, nans, places = 0, 0, list[NDArray[np.int64]]()
    for first, part in _rows(place):
        bad = _all_ones(part, place.dtype)
        if count < MOST_PLACES and bad.any():
            here = np.argwhere(bad)[: MOST_PLACES - count, : len(place.shape)]
            here[:, :1] += first
            places.append(here)
        count += int(bad.sum())
        nans += int(((part[bad] & part.dtype.type(BITS[place.dtype][2])) != 0).sum())
    return NonFinite(place.file, name, count, nans, np.concatenate(places)) if count else None


def _rows(place: Stored) -> Iterator[tuple[int, NDArray[Any]]]:
    """Read the tensor's numbers as unsigned integers, some rows at a time, and the number of the first of them.

    Of a tensor that lies in the file with strides all is in memory, a dim that repeats one number once.
    """
    shape = place.shape or (1,)
    width = place.nbytes // shape[0]
    if place.strides is not None:
        flat = _read(place, 0, place.extent)
        shape = tuple(size if stride else 1 for size, stride in zip(place.shape, place.strides, strict=True))
        strides = [step * flat.itemsize for step in place.strides]
        yield 0, np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, shape, strides, writeable=False))
        return
    at_once = max(1, CHUNK_BYTES // width)
    for first in range(0, shape[0], at_once):
        last = min(first + at_once, shape[0])
        yield first, _read(place, first * width, last * width).reshape(last - first, *shape[1:])


def _read(place: Stored, start: int, end: int) -> NDArray[Any]:
    """Read bytes of a tensor's extent, as unsigned integers."""
    found = np.empty(end - start, np.uint8)
    read_into(place.file, [(place.start + start, place.start + end)], found.data)
    return found.view(BITS[place.dtype][0])
