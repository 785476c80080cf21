"""One factor for all choices that keep features from the front of an order: their refits, and what these do.

The damped moment H + r of features in this order is Uᵀ U, U upper triangular. The first K of them are kept, G are gone,
and (H_KK + r) = U_KKᵀ U_KK, H_KG = U_KKᵀ U_KG. A ridge regression toward the old weights, see `least_squares.refit`, is

    W' = W_K + Δ,    (H_KK + r) Δᵀ = H_KG W_Gᵀ,    so that    U_KK Δᵀ = U_KG W_Gᵀ.

Inputs x become y = U⁻ᵀ x, of which the first K entries are U_KK⁻ᵀ x_K for every K. What that changes of the output,
along a gradient g there, is with a = Wᵀ g and z = U a

    g · (W' x_K - W x) = y_K · U_KG a_G - x_G · a_G = - y_G · U_GG a_G = - y_G · z_G,

for x_G is U_KGᵀ y_K + U_GGᵀ y_G. So no new weight is needed to tell what it does: one sum tells it for every K.

Letters in shapes: C features, K kept, G gone, O outputs, S samples, n rows of inputs, R rows of a strip.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sprunec.masks.least_squares import OUTPUTS, mean_square
from sprunec.masks.symmetric import SecondMoment, strips

ROWS = 256  # at a time


class OrderedFactor:
    """U, found in float64, from the diagonal on: half a matrix; the moment is needed no more.

    Args:
        order: (C,), features, those that stay longest first.
        ridge: r, as a share of the mean of H's diagonal; more, where rounding has left H not positive definite.
        dtype: that U is kept in, and used in.

    Raises:
        PassError: the moment is not finite.
    """

    def __init__(self, moment: SecondMoment, order: Tensor, ridge: float, dtype: torch.dtype = torch.float64) -> None:
        self._order, self._places = order.to(moment.device), strips(moment.width)
        self._strips, added = list[Tensor](), ridge * mean_square(moment)
        while not self._factored(moment, added):
            added *= 10
        for number, strip in enumerate(self._strips):
            self._strips[number] = strip.to(dtype)

    def _factored(self, moment: SecondMoment, added: float) -> bool:
        """Factor H, taken anew; False if it is not positive definite."""
        self._strips.clear()
        self._strips += moment.ordered(self._order)
        for number, (place, strip) in enumerate(zip(self._places, self._strips, strict=True)):
            size = len(strip)
            strip.diagonal().add_(added)
            corner, info = torch.linalg.cholesky_ex(strip[:, :size], upper=True)
            if int(info):
                return False
            strip[:, :size] = corner
            strip[:, size:] = torch.linalg.solve_triangular(corner.mT, strip[:, size:], upper=False)
            later = zip(self._places[number + 1 :], self._strips[number + 1 :], strict=True)
            for start, other in ((each.start - place.start, other) for each, other in later):
                other.addmm_(strip[:, start : start + len(other)].T, strip[:, start:], alpha=-1)
        return True

    def refit(self, weight: Tensor, count: int) -> Tensor:
        """Give the weight (O, C), in its dtype, that keeps so many features: refitted, and zero for all others."""
        found, kept = torch.zeros_like(weight), self._order[:count].to(weight.device)
        for first in range(0, len(weight), OUTPUTS):
            some = slice(first, first + OUTPUTS)
            rows = weight[some].to(self._order.device)[:, self._order].T.to(self._strips[0])  # (C, some of O)
            lacking = rows.new_zeros(count, rows.size(1))
            for place, strip in reversed(list(zip(self._places, self._strips, strict=True))):
                if (size := min(place.stop, count) - place.start) > 0:
                    behind, gone = slice(place.start + size, count), slice(count, None)
                    each = strip[:size, count - place.start :] @ rows[gone]
                    each -= strip[:size, size : count - place.start] @ lacking[behind]
                    own = slice(place.start, place.start + size)
                    lacking[own] = torch.linalg.solve_triangular(strip[:size, :size], each, upper=True)
            found[some, kept] = lacking.add_(rows[:count]).T.to(found)
        return found

    def effects(self, inputs: Tensor, along: Tensor, counts: Sequence[int]) -> Tensor:
        """Tell what keeping so many features changes of the output along gradients: (counts, S, n), in U's dtype.

        Args:
            inputs: x (n, C).
            along: a (S, n, C).
            counts: rising.
        """
        edges, features = torch.tensor(counts), torch.arange(len(self._order))
        # Of each feature, which choices leave it out: so many, from the first on.
        outside = torch.bucketize(features, edges, right=True).to(self._order.device)
        parts = zip(inputs.split(ROWS), along.split(ROWS, 1), strict=True)
        return torch.cat([self._effects(*part, outside, counts) for part in parts], dim=-1)

    def _effects(self, inputs: Tensor, along: Tensor, outside: Tensor, counts: Sequence[int]) -> Tensor:
        device, (samples, many, _) = self._order.device, along.shape
        left = inputs.to(device)[:, self._order].T.to(self._strips[0])  # (C, n), what is not y yet
        rows = along.to(device).flatten(0, 1)[:, self._order].T.to(self._strips[0])  # (C, S n)
        sums = left.new_zeros(len(counts) + 1, samples, many)
        for place, strip in zip(self._places, self._strips, strict=True):
            size = len(strip)
            own = torch.linalg.solve_triangular(strip[:, :size].mT, left[place], upper=False)
            left[place.stop :].addmm_(strip[:, size:].T, own, alpha=-1)
            if place.stop > counts[0]:
                products = (strip @ rows[place.start :]).view(size, samples, many).mul_(own[:, None])
                sums.index_add_(0, outside[place], products, alpha=-1)
        return sums[1:].flip(0).cumsum(0).flip(0)
