"""Where the tensors of a safetensors file lie: names, dtypes, shapes and places, from its header; needs no torch."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sprunec.durable import naming
from sprunec.errors import InputError
from sprunec.file_kinds import LARGEST_HEADER, file_kind, foreign

Shape = tuple[int, ...]
ENDINGS = {"safetensors": ".safetensors", "torch": ".pt"}
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


def check_kind(file: Path) -> None:
    """Raises InputError: a file of a checkpoint is, by its first bytes, something else than its name says."""
    fine, wanted = {"torch"}, "a PyTorch checkpoint"
    if file.suffix == ".safetensors":
        fine, wanted = {"safetensors", "unknown"}, "a safetensors file"
    if file_kind(file) == "old torch":
        wanted = "one as it writes today"
    renamed = {kind: f"rename it to {file.stem}{ending}" for kind, ending in ENDINGS.items()}
    if told := foreign(file, wanted, fine, {"": "give safetensors, or a state dict that torch.save wrote"} | renamed):
        raise told


def is_addressable(shape: Shape) -> bool:
    """Tell whether a tensor may have this shape; even an empty one has strides, which must be numbers of bytes."""
    if len(shape) > MOST_DIMS or any(type(size) is not int or not 0 <= size < MOST_BYTES for size in shape):
        return False
    return math.prod(max(size, 1) for size in shape) * max(SIZES.values()) < MOST_BYTES


def read_safetensors(path: str | Path) -> dict[str, Stored]:
    """Read what a safetensors file's header says.

    Raises:
        InputError: it has none, or one that says what cannot be.
        OSError: it cannot be read.
    """
    try:
        size = os.path.getsize(path)
        with naming(Path(path)), open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LARGEST_HEADER):
                raise _unusable(path, f"its header would be {length:,} bytes long and the file has {size:,}")
            header = json.loads(file.read(length).decode("utf-8"))
    except (ValueError, RecursionError):
        raise _unusable(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _unusable(path, "its header is not an object")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if any(not _has_end(entry) or entry["data_offsets"][1] > size - 8 - length for entry in entries.values()):
        raise _unusable(path, "its header names bytes that the file does not have")
    found = {name: _stored(path, name, entry, 8 + length) for name, entry in entries.items()}
    ranges = sorted(tuple(entry["data_offsets"]) for entry in entries.values())
    if any(later[0] < earlier[1] for earlier, later in pairwise(ranges)):  # a short file could claim any size so
        raise _unusable(path, "its tensors overlap")
    return found


def _has_end(entry: Any) -> bool:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets)


def _stored(path: str | Path, name: str, entry: dict[str, Any], base: int) -> Stored:
    shape = entry.get("shape")
    if not isinstance(shape, list) or not is_addressable(tuple(shape)):
        raise _unusable(path, f"tensor {name} has no shape that a tensor can have")
    first, last = entry["data_offsets"]
    dtype = str(entry.get("dtype"))[:LONGEST_DTYPE]
    if dtype in SIZES and (first < 0 or last - first != math.prod(shape) * SIZES[dtype]):
        raise _unusable(path, f"tensor {name} of {shape} {dtype} cannot lie in {last - first} bytes")
    return Stored(Path(path), dtype, tuple(shape), base + first)


def _unusable(path: str | Path, why: str) -> InputError:
    return unreadable(path, f"this is no whole safetensors file: {why}")


def unreadable(file: str | Path, why: str) -> InputError:
    message = f"cannot be read as a checkpoint: {why}"
    return InputError.at(file, message, "copy or save it again", code="bad-checkpoint")
