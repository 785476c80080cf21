"""The header of torch's `.pt`: a zip archive whose `data.pkl` says which bytes are which tensor; needs no torch.

Only the zip directory and `data.pkl` are read. No name in the pickle is imported: each stands for something of this
file, or is refused. What torch may write and this does not know is left to `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sprunec.checkpoint.safe_pickle import load_pickle
from sprunec.checkpoint.safetensors_file import SIZES, Shape, Stored, is_addressable
from sprunec.durable import naming
from sprunec.file_kinds import LARGEST_HEADER

_KINDS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
STORAGES = {f"{kind}Storage": dtype for kind, dtype in zip(_KINDS, SIZES, strict=True)}
LOCAL_HEADER, LITTLE = 30, b"little"
Records = dict[str, tuple[int, zipfile.ZipInfo]]


class Unknown(Exception):  # noqa: N818
    """Not a plain state dict in a zip archive, as far as this file can tell; says why."""


class Storage(NamedTuple):  # a tuple, since a pickle may set the attributes of other objects
    """A record of the archive; `entries` of them from byte `start` on."""

    dtype: str
    start: int
    entries: int


class View(NamedTuple):
    """What `_rebuild_tensor_v2` makes: a tensor over a part of a storage; offset and strides in entries."""

    storage: Storage
    offset: int
    shape: Shape
    strides: Shape


def read_pt(path: Path) -> dict[str, Stored]:
    """Find every tensor of a state dict, by name; raises OSError, and `Unknown` where it is written in another way."""
    try:
        with naming(path), path.open("rb") as file, zipfile.ZipFile(file) as archive:
            records = _records(archive, file, path.stat().st_size)
            _, order = records.get("byteorder", (0, None))
            if order and (order.file_size != len(LITTLE) or archive.read(order) != LITTLE):
                raise Unknown("not little-endian")
            _, pickled = records["data.pkl"]
            if pickled.file_size > LARGEST_HEADER:
                raise Unknown("a very long pickle")
            data = archive.read(pickled)
        state = load_pickle(io.BytesIO(data), _NAMES, lambda pid: _storage(records, *pid))
        if not isinstance(state, dict) or not all(isinstance(view, View) for view in state.values()):
            raise Unknown("no state dict")
        return {str(name): _stored(path, view) for name, view in state.items()}
    except (OSError, Unknown):
        raise
    except Exception as error:  # whatever a broken file leads to
        raise Unknown(f"{type(error).__name__}: {error}") from error


def _records(archive: zipfile.ZipFile, file: BinaryIO, end: int) -> Records:
    """Find the start of every record's content, by its name below the archive's own folder."""
    found = {}
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED:
            raise Unknown("compressed")
        file.seek(info.header_offset)
        head = file.read(LOCAL_HEADER)
        start = info.header_offset + LOCAL_HEADER + sum(int.from_bytes(head[i : i + 2], "little") for i in (26, 28))
        if len(head) < LOCAL_HEADER or start + info.file_size > end:
            raise Unknown("a record ends behind the file")
        found[info.filename.partition("/")[2]] = start, info
    return found


def _storage(records: Records, kind: str, dtype: Any, key: str, _: str, count: int) -> Storage:
    """Find the record that a persistent id of torch's names."""
    start, record = records[f"data/{key}"]
    if kind != "storage" or dtype not in SIZES or not 0 <= count * SIZES[dtype] <= record.file_size:
        raise Unknown(f"storage {key}")
    return Storage(dtype, start, count)


_NAMES: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": lambda data, at, shape, strides, *_: View(data, at, (*shape,), (*strides,)),
    "torch._utils._rebuild_parameter": lambda data, *_: View(*data),
    **{f"torch.{name}": dtype for name, dtype in STORAGES.items()},
}


def _stored(path: Path, view: View) -> Stored:
    numbers = (view.offset, *view.strides)
    if not all(type(number) is int and number >= 0 for number in numbers) or len(view.shape) != len(view.strides):
        raise Unknown("offsets or strides that no tensor has")
    if not isinstance(view.storage, Storage) or not is_addressable(view.shape):
        raise Unknown("a storage or a shape that no tensor has")
    sizes = enumerate(zip(view.shape, view.strides, strict=True))
    is_plain = all(length == 1 or stride == math.prod(view.shape[dim + 1 :]) for dim, (length, stride) in sizes)
    size = SIZES[view.storage.dtype]
    start = view.storage.start + view.offset * size
    stored = Stored(path, view.storage.dtype, view.shape, start, None if is_plain else view.strides)
    if view.offset * size + stored.extent > view.storage.entries * size:
        raise Unknown("a tensor ends behind its storage")
    return stored
