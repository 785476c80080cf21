"""Where the tensors of a safetensors file lie: names, dtypes, shapes and places, from its header; needs no torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sprunec.durable import naming
from sprunec.errors import InputError
from sprunec.file_kinds import LARGEST_HEADER

Shape = tuple[int, ...]
LONGEST_DTYPE = 20
MOST_DIMS, MOST_BYTES = 64, 2**63  # what torch can address
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Stored:
    """One tensor's place.

    Attributes:
        dtype: safetensors' word for it.
        start: of its first entry, in bytes from the file's start.
        strides: in entries, by dim; None: one entry after the other.
    """

    file: Path
    dtype: str
    shape: Shape
    start: int
    strides: Shape | None = None

    @property
    def nbytes(self) -> int:
        """Count the bytes of its entries, wherever they lie."""
        return math.prod(self.shape) * SIZES[self.dtype]

    @property
    def extent(self) -> int:
        """Count the bytes from its first entry to behind its last."""
        if self.strides is None or 0 in self.shape:
            return self.nbytes
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * SIZES[self.dtype]


def is_addressable(shape: Shape) -> bool:
    """Tell whether a tensor may have this shape; even an empty one has strides, which must be numbers of bytes."""
    if len(shape) > MOST_DIMS or any(type(size) is not int or not 0 <= size < MOST_BYTES for size in shape):
        return False
    return math.prod(max(size, 1) for size in shape) * max(SIZES.values()) < MOST_BYTES


def read_safetensors(path: Path) -> dict[str, Stored]:
    """Read what a safetensors file's header says; raises OSError, and InputError where it has none that can be."""
    size = path.stat().st_size
    try:
        with naming(path), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LARGEST_HEADER):
                raise _unusable(path, f"its header would be {length:,} bytes long and the file has {size:,}")
            header = json.loads(file.read(length).decode("utf-8"))
    except (ValueError, RecursionError):
        raise _unusable(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _unusable(path, "its header is not an object")
    header.pop("__metadata__", None)
    base = 8 + length
    found = {name: _stored(path, name, entry, base, size - base) for name, entry in header.items()}
    ranges = sorted(tuple(entry["data_offsets"]) for entry in header.values())
    if any(later[0] < earlier[1] for earlier, later in pairwise(ranges)):  # a short file could claim any size so
        raise _unusable(path, "its tensors overlap")
    return found


def _stored(path: Path, name: str, entry: Any, base: int, end: int) -> Stored:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or [type(offset) for offset in offsets] != [int, int] or offsets[1] > end:
        raise _unusable(path, "its header names bytes that the file does not have")
    shape = entry.get("shape")
    if not isinstance(shape, list) or not is_addressable(tuple(shape)):
        raise _unusable(path, f"tensor {name} has no shape that a tensor can have")
    first, last = offsets
    dtype = str(entry.get("dtype"))[:LONGEST_DTYPE]
    if dtype in SIZES and (first < 0 or last - first != math.prod(shape) * SIZES[dtype]):
        raise _unusable(path, f"tensor {name} of {shape} {dtype} cannot lie in {last - first} bytes")
    return Stored(path, dtype, tuple(shape), base + first)


def _unusable(path: Path, why: str) -> InputError:
    message = f"cannot be read as a checkpoint: this is no whole safetensors file: {why}"
    return InputError.at(path, message, "copy or save it again", code="bad-checkpoint")
