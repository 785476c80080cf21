"""In which order the rows of a tensor lie in a GGUF file, by those of the directory that it is made of; both ways."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sprunec.families.gguf.architecture import Order

PARTS = 3  # queries, keys and values


def row_order(order: Order, count: int, units: int) -> Sequence[int]:
    """Say which row of the directory's tensor each row of the file's is; the inverse is its argsort.

    Args:
        count: rows of the tensor.
        units: how many heads or key-value groups it has.
    """
    rows = np.arange(count)
    if order in (Order.QUERIES, Order.KEYS):
        return rows.reshape(units, 2, -1).swapaxes(1, 2).ravel().tolist()
    if order is Order.PARTS:
        return rows.reshape(units, PARTS, -1).swapaxes(0, 1).ravel().tolist()
    return range(count)
