"""Arrays of whole numbers as CPM-Live's sets hold them: pickled by numpy, or written as JSON lists.

What `pickle.dumps` makes of a one-dimensional int64 array is one fixed pattern of bytes around the numbers, at protocol
3 as at 4; it is recognised as it stands and the numbers are used where they lie. Everything else that is such an array
(other protocols, other widths, frames around long arrays) goes through `load_pickle`.
"""

from __future__ import annotations

import io
import json
import re

import numpy as np
from numpy.typing import NDArray

from sprunec.checkpoint.numpy_values import NAMES, Array
from sprunec.checkpoint.safe_pickle import Refused, load_pickle

Integers = NDArray[np.int64]
# What stands before the numbers, with the opcodes of how many numbers and bytes these are; and what stands behind them.
_FOUR = (
    rb"\x80[\x04\x05]\x95.{8}\x8c(?:\x16numpy\._core|\x15numpy\.core)\.multiarray\x94\x8c\x0c_reconstruct\x94\x93\x94"
    rb"\x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94K\x00\x85\x94C\x01b\x94\x87\x94R\x94\(K\x01(K.|M..|J.{4})\x85\x94"
    rb"(?:h\x03|\x8c\x05numpy\x94)\x8c\x05dtype\x94\x93\x94\x8c\x02i8\x94(?:\x89\x88|K\x00K\x01)\x87\x94R\x94"
    rb"\(K\x03\x8c\x01<\x94NNNJ\xff{4}J\xff{4}K\x00t\x94b\x89(C.|B.{4}|\x8e.{8}|\x96.{8})"
)
_THREE = (
    rb"\x80\x03cnumpy\._?core\.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85q\x02C\x01bq\x03\x87q\x04"
    rb"Rq\x05\(K\x01(K.|M..|J.{4})\x85q\x06cnumpy\ndtype\nq\x07X\x02\x00\x00\x00i8q\x08(?:\x89\x88|K\x00K\x01)\x87q\tRq\n"
    rb"\(K\x03X\x01\x00\x00\x00<q\x0bNNNJ\xff{4}J\xff{4}K\x00tq\x0cb\x89(C.|B.{4}|\x8e.{8}|\x96.{8})"
)
_AROUND = tuple((re.compile(head, re.DOTALL), end) for head, end in ((_FOUR, b"\x94t\x94b."), (_THREE, b"q\rtq\x0eb.")))
_MOST_OPCODES = 200


def read_array(stream: io.BytesIO) -> Integers:
    """Read the pickled array that the stream is at -> (n,) numbers; the stream is left right behind it.

    Raises:
        Refused: it is anything else.
    """
    buffer, start = stream.getbuffer(), stream.tell()
    for head, tail in _AROUND:
        if found := head.match(buffer, start):
            (count, size), at = (int.from_bytes(opcode[1:], "little") for opcode in found.groups()), found.end()
            if count * 8 == size and buffer[at + size : at + size + len(tail)] == tail:
                stream.seek(at + size + len(tail))
                return np.frombuffer(buffer, "<i8", count, at)
    made = load_pickle(stream, NAMES, most=_MOST_OPCODES)
    values = made.value if isinstance(made, Array) else None
    if values is None:
        raise Refused(f"{type(made).__name__}, not an array")
    if values.dtype.kind not in "iu" or values.dtype.str[1:] == "u8":
        raise Refused(f"an array of {values.dtype.str[1:]}, not of whole numbers")
    if values.ndim != 1:
        raise Refused(f"an array of shape {values.shape} with {values.size} numbers in it")
    return values.astype(np.int64)


def parse_payload(content: bytes | bytearray) -> Integers:
    """Read a payload that is nothing but an array, as a pickle or as JSON -> (n,) numbers."""
    if content.startswith(b"["):
        try:
            values = json.loads(content)
            if not isinstance(values, list) or not all(type(value) is int for value in values):
                raise Refused("JSON, but no list of whole numbers")
            return np.array(values, dtype=np.int64)
        except (ValueError, OverflowError, RecursionError) as error:
            raise Refused(f"broken JSON ({error})") from error
    numbers = read_array(stream := io.BytesIO(content))
    if behind := len(content) - stream.tell():
        raise Refused(f"{behind} bytes behind an array")
    return numbers


def dump_array(values: Integers) -> bytes:
    """Do as `pickle.dumps` with (n,) numbers at protocol 4, by the module name that every numpy can read."""
    data = np.ascontiguousarray(values, dtype="<i8").tobytes()
    count, size = values.size, len(data)
    shape = b"K" + bytes([count]) if count < 256 else b"J" + count.to_bytes(4, "little")
    length = b"C" + bytes([size]) if size < 256 else b"B" + size.to_bytes(4, "little")
    body = (
        b"\x8c\x15numpy.core.multiarray\x94\x8c\x0c_reconstruct\x94\x93\x94\x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94"
        b"K\x00\x85\x94C\x01b\x94\x87\x94R\x94(K\x01%b\x85\x94h\x03\x8c\x05dtype\x94\x93\x94\x8c\x02i8\x94"
        b"\x89\x88\x87\x94R\x94(K\x03\x8c\x01<\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t\x94b\x89%b%b\x94t\x94b."
    ) % (shape, length, data)
    return b"\x80\x04\x95" + len(body).to_bytes(8, "little") + body
