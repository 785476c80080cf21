"""An array as a file in an artifact: read, and never mapped, so that a disk that fails can say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
