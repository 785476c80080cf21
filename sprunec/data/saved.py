"""An array as a file in an artifact: read, and never mapped, so that a disk that fails can say so."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sprunec.durable import naming, read_into


def save_array(path: Path, array: NDArray[Any]) -> None:
    """As `np.save`, which for files writes past Python: why a disk takes no more it does not say.

    Raises:
        OSError: it cannot be written; says which it is, and how large it would be.
    """
    with naming(path, array.nbytes), path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        stream.write(np.ascontiguousarray(array).data)


def load_array(path: Path) -> NDArray[Any]:
    """What `save_array` wrote."""
    with naming(path):
        found: NDArray[Any] = np.load(path)
    return found


class GrowingIds:
    """Numbers of 32 bits, written as they come: a file as `save_array` makes it of all of them, none of them kept.

    Attributes:
        size: how many there are.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.size = path, 0
        with naming(path):
            self._stream = path.open("wb")
            self._header()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._stream, naming(self._path, 4 * self.size):
            if kind is None:
                self._stream.seek(0)
                self._header()  # as long as the first one: NumPy leaves room for any number

    def _header(self) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int32)), "fortran_order": False}
        np.lib.format.write_array_header_1_0(self._stream, header | {"shape": (self.size,)})

    def add(self, ids: NDArray[np.int32]) -> None:
        with naming(self._path, 4 * (self.size + ids.size)):
            self._stream.write(np.ascontiguousarray(ids, dtype=np.int32).data)
        self.size += ids.size


class SavedIds:
    """The numbers (n,) that `save_array` wrote, read where they are asked for; `size` is n."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with naming(path), path.open("rb") as stream:
            np.lib.format.read_magic(stream)
            (self.size,), _, self._dtype = np.lib.format.read_array_header_1_0(stream)
            self._start = stream.tell()

    def __getitem__(self, some: slice) -> NDArray[Any]:
        first, last, _ = some.indices(self.size)
        found = np.empty(max(0, last - first), self._dtype)
        begin = self._start + first * found.itemsize
        read_into(self._path, [(begin, begin + found.nbytes)], found.view(np.uint8).data)
        return found
