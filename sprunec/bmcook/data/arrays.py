"""Arrays of whole numbers as CPM-Live's sets hold them: pickled by numpy, or written as JSON lists.

What `pickle.dumps` makes of a one-dimensional int64 array is one fixed pattern of bytes around the numbers, at protocol
3 as at 4; it is recognised as it stands and the numbers are used where they lie. Everything else that is such an array
(other protocols, other widths, frames around long arrays) goes through `load_pickle`.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprunec.bmcook.numpy_values import NAMES, Array
from sprunec.checkpoint.safe_pickle import Refused, load_pickle

Buffer = Any  # bytes, bytearray or memoryview
Integers = NDArray[np.int64]
_COUNT, _BYTES = rb"(K.|M..|J.{4})", rb"(C.|B.{4}|\x8e.{8}|\x96.{8})"
_DTYPE = rb"\x8c\x05dtype\x94\x93\x94\x8c\x02i8\x94(?:\x89\x88|K\x00K\x01)\x87\x94R\x94"
_DTYPE += rb"\(K\x03\x8c\x01<\x94NNNJ\xff{4}J\xff{4}K\x00t\x94b"
_FOUR = re.compile(
    rb"\x80[\x04\x05]\x95.{8}\x8c(?:\x16numpy\._core|\x15numpy\.core)\.multiarray\x94\x8c\x0c_reconstruct\x94\x93\x94"
    rb"\x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94K\x00\x85\x94C\x01b\x94\x87\x94R\x94\(K\x01"
    + _COUNT
    + rb"\x85\x94(?:h\x03|\x8c\x05numpy\x94)"
    + _DTYPE
    + rb"\x89"
    + _BYTES,
    re.DOTALL,
)
_THREE = re.compile(
    rb"\x80\x03cnumpy\._?core\.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85q\x02C\x01bq\x03\x87q\x04"
    rb"Rq\x05\(K\x01"
    + _COUNT
    + rb"\x85q\x06cnumpy\ndtype\nq\x07X\x02\x00\x00\x00i8q\x08(?:\x89\x88|K\x00K\x01)\x87q\tRq\n"
    rb"\(K\x03X\x01\x00\x00\x00<q\x0bNNNJ\xff{4}J\xff{4}K\x00tq\x0cb\x89" + _BYTES,
    re.DOTALL,
)
_HEADS = ((_FOUR, re.compile(rb"\x94t\x94b\.")), (_THREE, re.compile(rb"q\rtq\x0eb\.")))
_MOST_OPCODES = 200
_LONGEST_NAME = 256


class Window:
    """A part of a buffer as a file to read from; asking for more than is left gives what is left."""

    def __init__(self, buffer: Buffer, start: int, end: int) -> None:
        self.buffer, self.at, self.end = buffer, start, end

    def read(self, size: int, /) -> bytes:
        part = bytes(self.buffer[self.at : min(self.at + max(size, 0), self.end)])
        self.at += len(part)
        return part

    def readline(self) -> bytes:
        """Read a line of a name."""
        head = bytes(self.buffer[self.at : min(self.at + _LONGEST_NAME, self.end)])
        return self.read(head.find(b"\n") + 1)

    def tell(self) -> int:
        return self.at

    def seek(self, place: int, /) -> None:
        self.at = place


def parse_array(buffer: Buffer, start: int, end: int) -> tuple[Integers, int]:
    """Read the pickled array at `start`, which ends before `end` -> (n,) numbers, and where it ends.

    Raises:
        Refused: it is anything else.
    """
    for head, tail in _HEADS:
        if found := head.match(buffer, start, end):
            (count, size), at = (int.from_bytes(opcode[1:], "little") for opcode in found.groups()), found.end()
            rest = tail.match(buffer, at + size, end) if at + size <= end and count * 8 == size else None
            if rest is not None:  # what is around the numbers fits them: they are taken where they lie
                return np.frombuffer(buffer, "<i8", count, at), rest.end()
    return _slowly(buffer, start, end)


def parse_payload(buffer: Buffer, start: int, end: int) -> Integers:
    """Read a payload that is exactly buffer[start:end], an array as a pickle or as JSON -> (n,) numbers."""
    if buffer[start : start + 1] == b"[":
        return _from_json(bytes(buffer[start:end]))
    values, stop = parse_array(buffer, start, end)
    if stop != end:
        raise Refused(f"{end - stop} bytes behind an array")
    return values


def dump_array(values: Integers) -> bytes:
    """Do as `pickle.dumps` with (n,) numbers at protocol 4, by the module name that every numpy can read."""
    data = np.ascontiguousarray(values, dtype="<i8").tobytes()
    count, size = values.size, len(data)
    shape = b"K" + bytes([count]) if count < 256 else b"J" + count.to_bytes(4, "little")
    length = b"C" + bytes([size]) if size < 256 else b"B" + size.to_bytes(4, "little")
    body = (
        b"\x8c\x15numpy.core.multiarray\x94\x8c\x0c_reconstruct\x94\x93\x94\x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94"
        b"K\x00\x85\x94C\x01b\x94\x87\x94R\x94(K\x01" + shape + b"\x85\x94h\x03\x8c\x05dtype\x94\x93\x94\x8c\x02i8\x94"
        b"\x89\x88\x87\x94R\x94(K\x03\x8c\x01<\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t\x94b\x89" + length
    )
    tail = b"\x94t\x94b."
    return b"\x80\x04\x95" + (len(body) + size + len(tail)).to_bytes(8, "little") + body + data + tail


def _slowly(buffer: Buffer, start: int, end: int) -> tuple[Integers, int]:
    window = Window(buffer, start, end)
    made = load_pickle(window, NAMES, most=_MOST_OPCODES)
    values = getattr(made, "value", None) if isinstance(made, Array) else None
    if values is None:
        raise Refused(f"{type(made).__name__}, not an array")
    if values.dtype.kind not in "iu" or values.dtype.str[1:] == "u8":
        raise Refused(f"an array of {values.dtype.str[1:]}, not of whole numbers")
    if values.ndim != 1:
        raise Refused(f"an array of shape {values.shape} with {values.size} numbers in it")
    return values.astype(np.int64), window.at


def _from_json(text: bytes) -> Integers:
    try:
        values = json.loads(text)
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            raise Refused("JSON, but no list of whole numbers")
        return np.array(values, dtype=np.int64)
    except (ValueError, OverflowError, RecursionError) as error:
        raise Refused(f"broken JSON ({error})") from error
