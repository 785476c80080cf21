"""A state dict as `torch.save` writes it, tensor by tensor: it need never be in memory as a whole.

The archive is a zip without compression: `data.pkl` says what lies where, and every tensor's bytes are a record.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import torch
from torch._utils import _rebuild_tensor_v2

from sprunec.checkpoint.pt_header import LOCAL_HEADER, STORAGES
from sprunec.checkpoint.safetensors_file import Shape
from sprunec.checkpoint.writer import WORDS, Output, check_room, write_tensor
from sprunec.durable import naming

ROOT, ALIGNMENT = "archive", 64
KINDS = {word: storage for storage, word in STORAGES.items()}
ZIP64_FROM, ZIP64_BYTES = 2**30, 20  # what its sizes take in a record's header
PADDING_HEADER = 4


def write_pt(outputs: Mapping[str, Output], path: Path) -> None:
    """Write tensors that are made while they are written; raises as `write_outputs`."""
    needed = sum(output.nbytes for output in outputs.values())
    check_room(path.parent, needed)
    with naming(path, needed), path.open("wb") as file, ZipFile(file, "w") as archive, ThreadPoolExecutor(1) as reader:
        archive.writestr(ZipInfo(f"{ROOT}/data.pkl"), _pickled(outputs))
        archive.writestr(ZipInfo(f"{ROOT}/byteorder"), b"little")
        for number, (name, output) in enumerate(outputs.items()):
            info, large = ZipInfo(f"{ROOT}/data/{number}"), output.nbytes >= ZIP64_FROM
            # Its bytes begin where a map of them can be used, as torch's do.
            before = file.tell() + LOCAL_HEADER + len(info.filename) + PADDING_HEADER + ZIP64_BYTES * large
            padding = -before % ALIGNMENT
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            with archive.open(info, "w", force_zip64=large) as record:
                write_tensor(record, reader, name, output)
        archive.writestr(ZipInfo(f"{ROOT}/version"), b"3\n")


def _pickled(outputs: Mapping[str, Output]) -> bytes:
    stream, views = io.BytesIO(), {}
    for number, (name, output) in enumerate(outputs.items()):
        kind = getattr(torch, KINDS[WORDS[output.dtype]])
        views[name] = _View(_Record(("storage", kind, str(number), "cpu", math.prod(output.shape))), output.shape)
    _Pickler(stream, protocol=2).dump(views)
    return stream.getvalue()


class _Record(tuple[Any, ...]):
    """The id of a record, which is all that a pickle has of a tensor's bytes."""


@dataclass(frozen=True)
class _View:
    """What a tensor is pickled as."""

    record: _Record
    shape: Shape

    def __reduce__(self) -> tuple[Any, ...]:
        strides = tuple(math.prod(self.shape[dim + 1 :]) for dim in range(len(self.shape)))
        return _rebuild_tensor_v2, (self.record, 0, self.shape, strides, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return tuple(value) if isinstance(value, _Record) else None
