"""Symmetric matrices as wide as a layer: what is below the diagonal is not computed, and no second one is held.

Letters in shapes: C features, n rows of inputs, B features that go together.
"""

from __future__ import annotations

from collections.abc import Iterator

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


class SecondMoment:
    """The mean of x xᵀ over rows, summed in float64 in the memory of one float32 matrix: from the diagonal on.

    Products are in the rows' dtype, some rows at a time; what is summed over all of them is not rounded to it. What is
    taken of it is float64.

    Attributes:
        count: rows so far.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        device = "cpu" if torch.device(device).type == "mps" else device  # which has no float64
        self.width, self.count = width, 0
        self._strips = strips(width)
        self._sums = [
            torch.zeros(strip.stop - strip.start, width - strip.start, dtype=torch.double, device=device)
            for strip in self._strips
        ]

    @classmethod
    def of(cls, mean: Tensor) -> SecondMoment:
        """Take a mean (C, C) that is known."""
        found = cls(len(mean), mean.device)
        found.count = 1
        for strip, total in zip(found._strips, found._sums, strict=True):
            total.copy_(mean[strip, strip.start :])
        return found

    @property
    def device(self) -> torch.device:
        return self._sums[0].device

    def add(self, rows: Tensor) -> None:
        """Add rows (n, C)."""
        for strip, total in zip(self._strips, self._sums, strict=True):
            total.add_((rows[:, strip].T @ rows[:, strip.start :]).to(total.device))
        self.count += len(rows)

    def round(self) -> None:
        """Round the sums to float32, once, which leaves half of the memory to who solves by them."""
        for number, total in enumerate(self._sums):
            self._sums[number] = total.float()

    def diagonal(self) -> Tensor:
        """Give the mean squares (C,)."""
        return torch.cat([total.diagonal() for total in self._sums]).double() / self.count

    def within(self, kept: Tensor) -> Tensor:
        """Take what rising features (K,) have with each other: (K, K), on the diagonal and above."""
        size, first = len(kept), 0
        found = self._sums[0].new_zeros(size, size, dtype=torch.double)
        for strip, total in zip(self._strips, self._sums, strict=True):
            own = _of(kept, strip)
            rows, columns = own[:, None] - strip.start, kept[first:] - strip.start
            found[first : first + len(own), first:] = total[rows, columns]
            first += len(own)
        return found.div_(self.count)

    def between(self, kept: Tensor, gone: Tensor) -> Iterator[Tensor]:
        """Take what rising features (K,) have with others, which rise, too (G,): some of the rows (K, G) at a time."""
        for number, (strip, total) in enumerate(zip(self._strips, self._sums, strict=True)):
            own = _of(kept, strip)
            before = [
                earlier[_of(gone, each)[:, None] - each.start, own - each.start].T
                for each, earlier in zip(self._strips[:number], self._sums, strict=False)
            ]
            behind = gone[gone >= strip.start] - strip.start
            yield torch.cat([*before, total[own[:, None] - strip.start, behind]], dim=1).double().div_(self.count)

    def ordered(self, order: Tensor) -> Iterator[Tensor]:
        """Take it with its features in another order (C,): strips of rows, each from its diagonal on."""
        for place in self._strips:
            rows, columns = order[place], order[place.start :]
            found = self._sums[0].new_empty(len(rows), len(columns), dtype=torch.double)
            for strip, total in zip(self._strips, self._sums, strict=True):
                own, behind = _at(rows, strip), (columns >= strip.start).nonzero()[:, 0]
                found[own[:, None], behind] = total[rows[own] - strip.start][:, columns[behind] - strip.start].double()
                own, behind = _at(columns, strip), (rows >= strip.stop).nonzero()[:, 0]
                below = total[columns[own] - strip.start][:, rows[behind] - strip.start]
                found[behind[:, None], own] = below.T.double()
            yield found.div_(self.count)


def _at(features: Tensor, strip: slice) -> Tensor:
    """Give the places of those features that are in a strip."""
    found: Tensor = ((features >= strip.start) & (features < strip.stop)).nonzero()[:, 0]
    return found


def _of(features: Tensor, strip: slice) -> Tensor:
    return features[_at(features, strip)]


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
