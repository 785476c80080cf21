"""The header of torch's `.pt`: a zip archive whose `data.pkl` says which bytes are which tensor; needs no torch.

Only the zip directory and `data.pkl` are read. No name in the pickle is imported: each stands for a class of this
file or is refused. What torch may write and this does not know is left to `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sprunec.checkpoint.safetensors_file import LARGEST_HEADER, SIZES, Shape, Stored, is_addressable
from sprunec.durable import naming

STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
# What a state dict is pickled with. Others could ask for memory that the file does not have.
OPCODES = {"PROTO", "FRAME", "MARK", "STOP", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE"}
OPCODES |= {"TUPLE1", "TUPLE2", "TUPLE3", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID", "SETITEM"}
OPCODES |= {"SETITEMS", "APPEND", "APPENDS", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2"}
OPCODES |= {"LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"}
TUPLES, GETS = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}, {"BINGET", "LONG_BINGET"}
PUTS = {"BINPUT", "LONG_BINPUT", "MEMOIZE"}
LOCAL_HEADER, LITTLE = 30, b"little"


class Unknown(Exception):  # noqa: N818
    """Not a plain state dict in a zip archive, as far as this file can tell; says why."""


@dataclass(frozen=True, eq=False)
class Storage:
    """A record of the archive; `count` entries from byte `start` on."""

    dtype: str
    start: int
    count: int


@dataclass(frozen=True, eq=False)
class View:
    """What `_rebuild_tensor_v2` makes: a tensor over a part of a storage; offset and strides in entries."""

    storage: Storage
    offset: int
    shape: Shape
    strides: Shape


def read_pt(path: Path) -> dict[str, Stored]:
    """Every tensor of a state dict, by name.

    Raises:
        Unknown: it is something else, or is written in another way.
        OSError: the file cannot be read.
    """
    try:
        with naming(path), path.open("rb") as file, zipfile.ZipFile(file) as archive:
            records = _records(archive, file, path.stat().st_size)
            state = _Reader(_pickle(archive, records), records).load()
        if not isinstance(state, dict) or not all(isinstance(view, View) for view in state.values()):
            raise Unknown("no state dict")
        return {str(name): _stored(path, view) for name, view in state.items()}
    except OSError:
        raise
    except Unknown:
        raise
    except Exception as error:  # whatever a broken file leads to
        raise Unknown(f"{type(error).__name__}: {error}") from error


def _records(archive: zipfile.ZipFile, file: BinaryIO, end: int) -> dict[str, tuple[int, int, str]]:
    """Start, size and full name of every record, by its name below the archive's own folder."""
    found = {}
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED:
            raise Unknown("compressed")
        file.seek(info.header_offset)
        head = file.read(LOCAL_HEADER)
        start = info.header_offset + LOCAL_HEADER + sum(int.from_bytes(head[i : i + 2], "little") for i in (26, 28))
        if len(head) < LOCAL_HEADER or start + info.file_size > end:
            raise Unknown("a record ends behind the file")
        found[info.filename.partition("/")[2]] = (start, info.file_size, info.filename)
    return found


def _pickle(archive: zipfile.ZipFile, records: dict[str, tuple[int, int, str]]) -> bytes:
    _, length, order = records.get("byteorder", (0, 0, ""))
    if order and (length != len(LITTLE) or archive.read(order) != LITTLE):
        raise Unknown("not little-endian")
    _, size, name = records["data.pkl"]
    if size > LARGEST_HEADER:
        raise Unknown("a very long pickle")
    data = archive.read(name)
    _check(data)
    return data


def _check(data: bytes) -> None:
    """Raises Unknown for other opcodes, and for a tuple that is used twice: such keys would have no end to hash."""
    kept: dict[Any, bool] = {}  # by their numbers, whether it is a tuple
    last = ""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in OPCODES or (opcode.name == "LONG_BINPUT" and (argument or 0) > len(data)):
            raise Unknown(f"opcode {opcode.name}")
        if opcode.name in PUTS:
            kept[len(kept) if argument is None else argument] = last in TUPLES
        elif opcode.name in GETS and kept.get(argument):
            raise Unknown("a tuple that is used twice")
        last = opcode.name


class _Reader(pickle.Unpickler):
    """Builds views; knows the few names that a state dict is made with."""

    def __init__(self, data: bytes, records: dict[str, tuple[int, int, str]]) -> None:
        super().__init__(io.BytesIO(data))
        self._records = records

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _view,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }
        if (module, name) not in known:
            raise Unknown(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, count = pid
        start, size, _ = self._records[f"data/{key}"]
        if kind != "storage" or dtype not in SIZES or not 0 <= count * SIZES[dtype] <= size:
            raise Unknown(f"storage {key}")
        return Storage(dtype, start, count)


def _view(storage: Storage, offset: int, shape: Shape, strides: Shape, *_: Any) -> View:
    return View(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: View, *_: Any) -> View:
    return data


def _stored(path: Path, view: View) -> Stored:
    numbers = (view.offset, *view.strides)
    if not all(type(number) is int and number >= 0 for number in numbers) or len(view.shape) != len(view.strides):
        raise Unknown("sizes that are none")
    if not is_addressable(view.shape):
        raise Unknown("a shape that no tensor has")
    size = SIZES[view.storage.dtype]
    plain, expected = True, 1
    for length, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        plain, expected = plain and (stride == expected or length == 1), expected * length
    start = view.storage.start + view.offset * size
    stored = Stored(path, view.storage.dtype, view.shape, start, None if plain else view.strides)
    if view.offset * size + stored.extent > view.storage.count * size:
        raise Unknown("a tensor ends behind its storage")
    return stored
