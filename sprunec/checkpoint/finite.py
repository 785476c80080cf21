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

from sprunec.checkpoint.gguf_file import Packed
from sprunec.checkpoint.safetensors_file import SIZES, Shape, Stored
from sprunec.durable import naming, read_into

CHUNK_BYTES = 8 * 2**20
MOST_PLACES = 4096
EXPONENTS = {"F64": 0x7FF0000000000000, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}  # the bits of it, by dtype


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
    """Hash a file, and find which of its tensors, that lie at `places`, are not finite, in one reading; raises OSError.

    It is read in windows that overlap by the width of a number, so that none is cut in two everywhere.
    """
    plain = {
        name: place for name, place in places.items() if not isinstance(place, Packed)
    }  # others when they are read
    floats = {name: place for name, place in plain.items() if place.dtype in EXPONENTS and place.extent}
    digest, suspects, first = hashlib.sha256(), set[str](), 0
    buffer = memoryview(bytearray(CHUNK_BYTES + max(SIZES.values())))
    with naming(file), file.open("rb") as stream:
        while count := stream.readinto(buffer):
            window = buffer[:count]
            digest.update(window[:CHUNK_BYTES])
            suspects |= {name for name in floats.keys() - suspects if _has_any(floats[name], first, window)}
            first = stream.seek(first + CHUNK_BYTES)
    found = (_located(name, place) for name, place in floats.items() if name in suspects)
    return digest.hexdigest(), [each for each in found if each is not None]


def _has_any(place: Stored, first: int, window: memoryview) -> bool:
    """Tell whether a number of the tensor within the window is not finite; gaps between its rows count, too."""
    size = SIZES[place.dtype]
    begin = place.start - first if place.start > first else (place.start - first) % size
    count = (min(place.start + place.extent - first, len(window)) - begin) // size
    return count > 0 and bool(_all_ones(np.frombuffer(window, f"u{size}", count, begin), place.dtype).any())


def _all_ones(numbers: NDArray[Any], dtype: str) -> NDArray[Any]:
    known, mask = {"F32": np.float32, "F64": np.float64}.get(dtype), numbers.dtype.type(EXPONENTS[dtype])
    # numpy's own test is twice as fast where it has one
    found: NDArray[Any] = (numbers & mask) == mask if known is None else ~np.isfinite(numbers.view(known))
    return found


def _located(name: str, place: Stored) -> NonFinite | None:
    """Count them in the tensor itself, and find where they are."""
    shape, mantissa = place.shape, ~EXPONENTS[place.dtype] & EXPONENTS[place.dtype] - 1
    if place.strides is not None:  # a dim that repeats one number has it once
        shape = tuple(size if stride else 1 for size, stride in zip(shape, place.strides, strict=True))
    count, nans, first, places = 0, 0, 0, list[NDArray[np.int64]]()
    for part in _numbers(place, shape):
        bad = np.flatnonzero(_all_ones(part, place.dtype))
        places.append(bad[: max(0, MOST_PLACES - count)] + first)
        nans += int(np.count_nonzero(part[bad] & part.dtype.type(mantissa)))
        count, first = count + len(bad), first + len(part)
    indices = np.stack(np.unravel_index(np.concatenate(places), shape or (1,)), axis=1)[:, : len(shape)]
    return NonFinite(place.file, name, count, nans, indices) if count else None


def _numbers(place: Stored, shape: Shape) -> Iterator[NDArray[Any]]:
    """Read a tensor's numbers as unsigned integers, some at a time; of one with strides all is in memory."""
    at_once = CHUNK_BYTES if place.strides is None else place.extent
    for start in range(place.start, place.start + place.extent, at_once):
        end = min(start + at_once, place.start + place.extent)
        found = np.empty(end - start, np.uint8)
        read_into(place.file, [(start, end)], found.data)
        flat = found.view(f"u{SIZES[place.dtype]}")
        if place.strides is not None:
            strides = [step * flat.itemsize for step in place.strides]
            flat = np.lib.stride_tricks.as_strided(flat, shape, strides, writeable=False).ravel()
        yield flat
