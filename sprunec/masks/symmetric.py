"""Symmetric matrices as wide as a layer: what is below the diagonal is not computed, and no second one is held.

Letters in shapes: C features, n rows of inputs, B features that go together.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDE, NARROW = 1024, 256  # rows worked on at a time; few in narrow matrices, of which half is to be spared as well


def add_second_moment(total: Tensor, rows: Tensor) -> None:
    """Add x xᵀ over rows to a total, on its diagonal and above; `mirror` fills in the rest, once, in the end.

    Args:
        total: (C, C), changed in place; what is below its diagonal means nothing before `mirror`.
        rows: (n, C), of the total's dtype and device. Many at a time are faster: all of the total is written for each.
    """
    for strip in strips(len(total)):
        behind = slice(strip.start, None)
        total[strip, behind].addmm_(rows[:, strip].T, rows[:, behind])


def mirror(total: Tensor) -> None:
    """Copy what is above the diagonal (C, C) to below it, in place."""
    for strip in strips(len(total)):
        own, behind = total[strip, strip], slice(strip.stop, None)
        own.copy_(own.triu() + own.triu(1).T)
        total[behind, strip] = total[strip, behind].T


def subtract_square(matrix: Tensor, factor: Tensor) -> None:
    """Subtract factorᵀ factor, of (B, C), from a matrix (C, C), on its diagonal and above, in place."""
    for strip in strips(len(matrix)):
        behind = slice(strip.start, None)
        matrix[strip, behind].addmm_(factor[:, strip].T, factor[:, behind], alpha=-1)


def rows_of(matrix: Tensor, which: Tensor) -> Tensor:
    """Take rows (B, C) of a matrix (C, C) that holds on its diagonal and above."""
    above = torch.arange(len(matrix), device=which.device) < which[:, None]
    return torch.where(above, matrix[:, which].T, matrix[which])


def factor_(matrix: Tensor) -> Tensor | None:
    """Factor a matrix (C, C) in its own memory into L Lᵀ -> L, lower triangular; None: it is not positive definite.

    The transpose of a matrix lies in memory as LAPACK works on it, so that torch makes no copy.
    """
    info = torch.zeros((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(matrix.mT, out=(matrix.mT, info))
    return None if int(info) else matrix.mT


def strips(count: int) -> list[slice]:
    """Cut so many rows into runs, each of which is worked on from the diagonal on."""
    step = WIDE if count > 8 * WIDE else NARROW
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]
