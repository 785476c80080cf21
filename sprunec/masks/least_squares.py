"""Least squares over a projection's input features: what removing some costs, and how the others make up for it.

The output of a projection on inputs x (C,) is W x. With the mean H of x xᵀ over calibration batches, the mean square by
which W' x on fewer features differs from it, and the W' that differs least, follow without the data.

Letters in shapes: O outputs, C features, U units, M features of one unit, K features kept, G features gone; B features
that are removed together, N those they are chosen from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sprunec.errors import PassError
from sprunec.masks.symmetric import SecondMoment, factor_, mirror, rows_of, subtract_square

# With it the largest eigenvalue is at most 100 C times the smallest, so that removal can do with float32: on SmolLM2's
# layers, and on synthetic ones with features 1e4 times as large as others in mean square, an eighth as many tokens as
# features or features repeated, float64 keeps the same sets, but for units whose errors are alike to some parts in 1e4;
# to sum H itself in float64 changes as much. A refit may be damped less, and is done in float64.
DAMP = 0.01
# One in 64 of the features that are left are removed together, out of four times as many: then SmolLM2's and synthetic
# layers lose the same features in the same order as one by one. Of the last 256 every one is chosen from all.
PART, CHOICE, FEWEST = 64, 4, 256
OUTPUTS = 256  # that are fitted at a time
RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # from which refits choose
MANY, MIXED = 1024, 256  # of more outputs, so many sums of them are what they choose by


def removal_errors(moment: Tensor, weight: Tensor, features: Tensor) -> Tensor:
    """Tell by how much the output's mean square error grows when units go, each time the one that costs least.

    Structured optimal brain surgery (Frantar & Alistarh 2022, Kurtić et al. 2023): the features that are left are
    refitted after every removal. Units of one feature are removed in blocks by products of matrices.

    Args:
        moment: (C, C). The work is done in its dtype, for which float32 is enough; see `DAMP`.
        weight: (O, C).
        features: (U, M), the features of each unit; each feature is in one.

    Returns:
        (U,) on the CPU, rising in the order of removal; the last one left counts as the rest.

    Raises:
        PassError: the moment is not finite.
    """
    place = "cpu" if moment.device.type == "mps" else moment.device  # its solvers are few
    factor = _factor(lambda: moment.to(place, copy=True), DAMP * mean_square(moment))
    inverse: Tensor = torch.cholesky_inverse(factor, out=factor).mT
    rows = inverse.new_empty(weight.T.shape).copy_(weight.T)
    order, costs = (_by_blocks if features.size(1) == 1 else _one_by_one)(inverse, rows, features.to(inverse.device))
    return torch.empty(len(features)).index_copy_(0, order.cpu(), costs.cpu().cummax(0).values.float())


def _one_by_one(inverse: Tensor, rows: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Remove units of several features -> the order and its costs (U,)."""
    left, order, costs = torch.ones(len(features), dtype=torch.bool), list[int](), list[float]()
    for _ in range(len(features)):
        factors = _factors(inverse[features[:, :, None], features[:, None, :]])
        # tr(W_u (H⁻¹_uu)⁻¹ W_uᵀ)
        parts = torch.linalg.solve_triangular(factors, rows[features], upper=False)  # (U, M, O)
        each = parts.square_().sum((1, 2)).cpu().masked_fill(~left, torch.inf)
        order.append(int(each.argmin()))
        costs.append(float(each[order[-1]]))
        left[order[-1]] = False
        # Out of W and H⁻¹, where its own entries become those of features that do not matter.
        gone = features[order[-1]]
        solved = torch.cholesky_solve(inverse[gone], factors[order[-1]])
        rows.addmm_(solved.T, rows[gone], alpha=-1)
        inverse.addmm_(inverse[:, gone], solved, alpha=-1)
        rows[gone], inverse[gone], inverse[:, gone] = 0.0, 0.0, 0.0
        inverse[gone, gone] = 1.0
    return torch.tensor(order), torch.tensor(costs)


def _factors(matrices: Tensor) -> Tensor:
    """Factor positive definite matrices (U, M, M), which rounding may have left a little less than that.

    A general solver is no choice: with several threads, MKL's fails on stacks of such matrices.
    """
    diagonal, share = matrices.diagonal(dim1=1, dim2=2), float(torch.finfo(matrices.dtype).eps)
    while share < 1.0:
        factors, info = torch.linalg.cholesky_ex(matrices)
        if not bool(info.any()):
            found: Tensor = factors
            return found
        diagonal.add_(share * diagonal.mean(1, keepdim=True))
        share *= 10
    raise PassError("what is left of a projection's inputs cannot be told apart in float32; calibrate on more batches")


def _by_blocks(inverse: Tensor, rows: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Remove units of one feature -> the order and its costs (U,).

    A block's features are chosen one by one, each out of the cheapest ones as they are by then, and taken out of all
    others together. What is left moves to the front of H⁻¹ and W, so that the work shrinks.
    """
    left = torch.empty_like(features[:, 0]).index_copy_(0, features[:, 0], torch.arange(len(rows), device=rows.device))
    order, costs = [], []
    while count := len(left):
        inverse, rows = inverse[:count, :count], rows[:count]
        block = count if count <= FEWEST else count // PART
        each = torch.linalg.vector_norm(rows, dim=1).square() / inverse.diagonal()
        some = each.topk(min(count, max(FEWEST, CHOICE * block)), largest=False).indices.sort().values
        among = inverse[some[:, None], some]
        mirror(among)
        chosen, cost, factor = _choose(among, rows[some] @ rows[some].T, block)
        gone = some[chosen]
        order.append(left[gone])
        costs.append(cost)
        lost = torch.linalg.solve_triangular(factor, rows_of(inverse, gone), upper=False)
        rows.addmm_(lost.T, torch.linalg.solve_triangular(factor, rows[gone], upper=False), alpha=-1)
        subtract_square(inverse, lost)
        left = _move_up(inverse, rows, left, gone)
    return torch.cat(order), torch.cat(costs)


def _choose(inverse: Tensor, gram: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose features to remove one after the other, each the cheapest once those before are gone.

    Neither matrix is changed: after the removals so far the one is inverse - uᵀ u, the other gram - uᵀ v - vᵀ u, and
    only the diagonals and a row of them are ever needed. This is Cholesky's method with the cheapest as the pivot.

    Args:
        inverse: (N, N), of H⁻¹.
        gram: (N, N), WᵀW of these features.
        count: B.

    Returns:
        The choice and its costs (B,), and the lower triangular factor (B, B) of `inverse` there.
    """
    u, v = inverse.new_zeros(2, count, len(inverse))
    spread, energy = inverse.diagonal().clone(), gram.diagonal().clone()
    least = spread * torch.finfo(spread.dtype).eps  # where nothing but rounding is left
    chosen, costs = list[int](), spread.new_empty(count)
    for step in range(count):
        ratios = energy / spread
        pick = int(ratios.argmin())
        before, pivot = slice(step), spread[pick].sqrt()
        torch.div(inverse[pick] - u[before, pick] @ u[before], pivot, out=u[step])
        row = (gram[pick] - u[before, pick] @ v[before] - v[before, pick] @ u[before]) / pivot
        torch.sub(row, u[step] * (row[pick] / (2 * pivot)), out=v[step])
        spread = torch.maximum(spread - u[step].square(), least)
        energy = (energy - 2 * u[step] * v[step]).clamp_(min=0)
        costs[step], energy[pick] = ratios[pick], math.inf
        chosen.append(pick)
    found = torch.tensor(chosen, device=inverse.device)
    return found, costs, u[:, found].T


def _move_up(inverse: Tensor, rows: Tensor, left: Tensor, gone: Tensor) -> Tensor:
    """Move the last of those that stay into the places (B,) of those that go -> what is left, in its new order."""
    count = len(left) - len(gone)
    stays = torch.ones_like(left, dtype=torch.bool).index_fill_(0, gone, False)
    last, holes = count + stays[count:].nonzero()[:, 0], gone[gone < count]
    moved = rows_of(inverse, last)
    moved[:, holes] = moved[:, last]
    inverse[holes], inverse[:, holes] = moved, moved.T
    rows[holes], left[holes] = rows[last], left[last]
    return left[:count]


def refit(moment: SecondMoment, weight: Tensor, kept: Tensor, gate: Tensor | None = None, *, ridge: float) -> Tensor:
    """Fit the weight of the kept features that comes nearest to the output of all.

    It minimises the mean of |W x - W' x_K|² + r |W' - W_K|² over inputs x: a ridge regression toward what the weight
    was. One toward zero does worse than no refit. The work is done in float64, for r may be small: what W_K lacks is
    solved for, (H_KK + r) (W' - W_K)ᵀ = H_KG W_Gᵀ.

    Args:
        moment: H, of C features.
        weight: (O, C).
        kept: (K,) features, rising.
        gate: (C,), what each feature of the output that is wanted counts; None: 1.
        ridge: r, as a share of the mean of H's diagonal; more, where rounding has left H not positive definite.

    Returns:
        (O, K) in the weight's dtype.

    Raises:
        PassError: the moment is not finite.
    """
    kept = kept.to(moment.device)
    gone = torch.ones(moment.width, dtype=torch.bool, device=kept.device).index_fill_(0, kept, False).nonzero()[:, 0]
    factor = _factor(lambda: moment.within(kept), ridge * mean_square(moment))
    found = weight.new_empty(len(weight), len(kept))

    def fit(some: slice) -> None:
        """Fit some outputs; what that takes is let go of before the next ones."""
        rows = weight[some].T.to(factor)  # (C, some of O)
        if gate is not None:
            rows *= gate.to(factor)[:, None]
        lacking = torch.cat([part @ rows[gone] for part in moment.between(kept, gone)])
        torch.linalg.solve_triangular(factor, lacking, upper=False, out=lacking)
        torch.linalg.solve_triangular(factor.mT, lacking, upper=True, out=lacking)
        found[some] = lacking.add_(rows[kept]).T.to(found)

    for first in range(0, len(weight), OUTPUTS):
        fit(slice(first, first + OUTPUTS))
    return found


def choose_ridge(
    moment: SecondMoment, unseen: Sequence[Tensor], weight: Tensor, kept: Tensor, gate: Tensor | None = None
) -> float:
    """Choose the ridge whose refit errs least on inputs that the moment has not seen: one of `RIDGES`.

    The error has one valley over the ridge, so that it is gone down from the middle. Many outputs are
    stood for by random sums of all of them, whose squares are, on average, those of the outputs.

    Args:
        unseen: inputs (n, C), some at a time.

    Raises:
        PassError: the moment is not finite.
    """
    if len(weight) > MANY:
        draw = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (MIXED, len(weight)), generator=draw).to(weight).mul_(2).sub_(1)
        weight = signs @ weight
    errors = dict[int, float]()

    def error(place: int) -> float:
        if place not in errors:
            apart = weight.clone() if gate is None else weight * gate.to(weight)
            apart[:, kept] -= refit(moment, weight, kept, gate, ridge=RIDGES[place])
            errors[place] = sum(float((rows @ apart.T).square().sum(dtype=torch.double)) for rows in unseen)
        return errors[place]

    place, before = RIDGES.index(0.1), -1
    while place != before:
        before, near = place, range(max(0, place - 1), min(len(RIDGES), place + 2))
        place = min(near, key=error)
    return RIDGES[place]


def mean_square(moment: Tensor | SecondMoment) -> float:
    """Give the mean of the diagonal; raises PassError where it is not finite."""
    mean = float(moment.diagonal().double().mean())
    if not math.isfinite(mean):
        raise PassError("what the calibration batches give inside of the model is not finite")
    return max(mean, 1e-30)


def _factor(made: Callable[[], Tensor], added: float) -> Tensor:
    """Factor H (K, K), made anew for each try, with so much added to its diagonal -> lower triangular.

    What is added keeps few batches from fitting noise. It is ten times as much for as long as H's rounding is more.
    """
    while True:
        matrix = made()
        matrix.diagonal().add_(added)
        if (factor := factor_(matrix)) is not None:
            return factor
        added *= 10
