"""An array as a file in an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprunec.durable import naming


def save_array(path: Path, array: NDArray[Any]) -> None:
    """As `np.save`, which for files writes past Python: why a disk takes no more it does not say.

    Raises:
        OSError: it cannot be written; says which it is, and how large it would be.
    """
    with naming(path, array.nbytes), path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        stream.write(np.ascontiguousarray(array).data)
