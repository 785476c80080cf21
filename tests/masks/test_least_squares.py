"""Least squares over a projection's columns: the closed forms against what the data itself says."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from sprunec.masks import least_squares
from sprunec.masks.least_squares import refit, removal_errors

HARDLY = 1e-9


@pytest.fixture(autouse=True)
def hardly_damped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "DAMP", HARDLY)


def data(columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (T, C) that depend on each other, their second moment, and a weight (O, C)."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=draw, dtype=torch.double)
    inputs = torch.randn(200, columns, generator=draw, dtype=torch.double) @ mix
    return inputs, inputs.T @ inputs / 200, torch.randn(5, columns, generator=draw, dtype=torch.double)


def best_fit(inputs: Tensor, wanted: Tensor, kept: list[int]) -> tuple[Tensor, float]:
    """By the data: the weight (O, K), and the mean square error summed over outputs."""
    fitted = torch.linalg.lstsq(inputs[:, kept], wanted).solution
    return fitted.T, float((inputs[:, kept] @ fitted - wanted).square().sum() / len(inputs))


def test_refit_is_the_least_squares_solution_on_the_data() -> None:
    inputs, moment, weight = data(8)
    kept = [0, 3, 4, 7]
    wanted, _ = best_fit(inputs, inputs @ weight.T, kept)
    assert torch.allclose(refit(moment, weight, torch.tensor(kept), ridge=HARDLY), wanted, atol=1e-6)


def test_a_ridge_draws_to_the_old_weight() -> None:
    """By the data: more rows, whose inputs are one feature each and whose output is what the old weight gives."""
    inputs, moment, weight = data(8)
    kept, ridge = [0, 3, 4, 7], 0.3
    strength = (200 * ridge * moment.diagonal().mean()).sqrt()
    more, rows = strength * torch.eye(4, dtype=torch.double), strength * weight[:, kept].T
    wanted = torch.linalg.lstsq(torch.cat([inputs[:, kept], more]), torch.cat([inputs @ weight.T, rows])).solution.T
    assert torch.allclose(refit(moment, weight, torch.tensor(kept), ridge=ridge), wanted, atol=1e-9)


def test_refit_aims_at_what_gated_columns_gave() -> None:
    inputs, moment, weight = data(6)
    gate = torch.tensor([1.0, 0.5, 0.0, 1.0, 0.2, 0.0], dtype=torch.double)
    wanted, _ = best_fit(inputs, (inputs * gate) @ weight.T, [0, 1, 3])
    assert torch.allclose(refit(moment, weight, torch.tensor([0, 1, 3]), gate, ridge=HARDLY), wanted, atol=1e-6)


def test_columns_whose_gates_are_already_the_mask_keep_their_weights() -> None:
    _, moment, weight = data(6)
    gate = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.double)
    assert torch.allclose(
        refit(moment, weight, torch.tensor([0, 2, 3]), gate, ridge=HARDLY), weight[:, [0, 2, 3]], atol=1e-6
    )


def test_the_cheapest_unit_goes_first_and_errors_are_the_datas_own() -> None:
    inputs, moment, weight = data(8, seed=1)
    units = torch.arange(8).view(4, 2)
    errors = removal_errors(moment, weight, units)
    first = int(errors.argmin())
    alone = {
        unit: best_fit(inputs, inputs @ weight.T, [c for c in range(8) if c not in units[unit].tolist()])[1]
        for unit in range(4)
    }
    assert first == min(alone, key=lambda unit: alone[unit])
    assert float(errors[first]) == pytest.approx(alone[first], rel=1e-4)


def test_removal_goes_on_from_refitted_weights() -> None:
    inputs, moment, weight = data(6, seed=2)
    order = removal_errors(moment, weight, torch.arange(6)[:, None]).argsort().tolist()
    gone = set(order[:2])
    kept = [c for c in range(6) if c not in gone]
    _, error = best_fit(inputs, inputs @ weight.T, kept)
    one = best_fit(inputs, inputs @ weight.T, [c for c in range(6) if c != order[0]])[1]
    second = removal_errors(moment, weight, torch.arange(6)[:, None])[order[1]]
    assert float(second) == pytest.approx(max(one, error - one), rel=1e-4)


def test_a_column_that_another_repeats_costs_nothing() -> None:
    _, moment, weight = data(5, seed=3)
    repeat = torch.eye(5, dtype=torch.double)
    repeat[4] = repeat[1]
    moment = repeat @ moment @ repeat.T
    errors = removal_errors(moment, weight, torch.arange(5)[:, None])
    assert float(errors[[1, 4]].min()) < 1e-6 * float(errors.sort().values[1])


def test_greedy_removal_is_the_best_of_all_pairs_where_columns_are_apart() -> None:
    _, moment, weight = data(5, seed=4)
    moment = torch.diag(moment.diagonal())
    errors = removal_errors(moment, weight, torch.arange(5)[:, None])
    pairs = {
        pair: float((moment.diagonal() * weight.square().sum(0))[list(pair)].sum())
        for pair in itertools.combinations(range(5), 2)
    }
    assert set(errors.argsort()[:2].tolist()) == set(min(pairs, key=lambda pair: pairs[pair]))
