"""Multipliers that steer expected sizes to their targets, on a toy whose answer is known."""

from __future__ import annotations

import pytest
import torch

from sprunec.masks.budgets import Budget, CountBudget, make_budgets, settled
from sprunec.masks.gates import kept_probability
from sprunec.masks.lagrangian import QUADRATIC_FLOOR, Lagrangian
from sprunec.masks.size_budget import SizeBudget
from tests.conftest import tiny_config

HEADS = {(0, "head"): 4, (1, "head"): 4, (2, "head"): 4}


def settle(budgets: tuple[Budget, ...], pull: float, steps: int = 200) -> tuple[list[float], dict]:
    """Log-alphas under the penalty and a quadratic that wants unit i of all open, worth i + 1 times `pull`."""
    sizes = dict.fromkeys([key for budget in budgets for key in budget.keys], 4)
    log_alphas = {key: torch.full((n,), 2.0, requires_grad=True) for key, n in sizes.items()}
    lagrangian = Lagrangian(budgets, steps, ramp=0.5)
    optimizer = torch.optim.Adam(log_alphas.values(), lr=0.1)
    expected: list[float] = []
    for step in range(steps):
        kept = {key: kept_probability(value) for key, value in log_alphas.items()}
        worth = sum(((torch.arange(4.0) + 1) * (1 - p) ** 2).sum() for p in kept.values())
        penalty, expected = lagrangian.penalty(kept, step)
        (pull * worth + penalty).backward()
        optimizer.step(), optimizer.zero_grad(), lagrangian.ascend()
    return expected, log_alphas


@pytest.mark.parametrize("pull", [0.0, 0.1])
def test_a_global_count_settles_at_its_target(pull: float) -> None:
    budget = CountBudget("num_heads", tuple(HEADS), 12.0, 5.0)
    (expected,), _ = settle((budget,), pull)
    assert settled(budget, expected)


def test_each_layers_count_settles_at_its_own_target() -> None:
    budgets = tuple(CountBudget(f"layer {key[0]}", (key,), 4.0, float(key[0] + 1)) for key in HEADS)
    expected, log_alphas = settle(budgets, 0.05)
    assert all(settled(budget, size) for budget, size in zip(budgets, expected, strict=True))
    assert all(float(value.detach().diff().min()) > 0 for key, value in log_alphas.items() if key[0] < 2)


def test_a_size_settles_at_its_target() -> None:
    (budget,) = make_budgets(tiny_config(), ("head",), {"sparsity": 0.6}, "global")
    (expected,), _ = settle((budget,), 0.05)
    assert isinstance(budget, SizeBudget)
    assert settled(budget, expected)


def test_without_ascent_a_strong_pull_wins() -> None:
    budget = CountBudget("num_heads", ((0, "head"),), 4.0, 1.0)
    log_alpha = torch.full((4,), 2.0, requires_grad=True)
    lagrangian, optimizer = Lagrangian((budget,), 300, 0.5), torch.optim.Adam([log_alpha], lr=0.1)
    for step in range(300):
        kept = kept_probability(log_alpha)
        penalty, (expected,) = lagrangian.penalty({(0, "head"): kept}, step)
        (20 * (1 - kept).square().sum() + penalty).backward()
        optimizer.step(), optimizer.zero_grad()
    assert not settled(budget, expected)


def test_targets_ramp_from_full_size() -> None:
    budgets = (CountBudget("a", (), 12.0, 4.0), CountBudget("b", (), 100.0, 100.0))
    lagrangian = Lagrangian(budgets, steps=8, ramp=0.5)
    assert [lagrangian.targets(step)[0] for step in (0, 1, 3, 7)] == [10.0, 8.0, 4.0, 4.0]
    assert {lagrangian.targets(step)[1] for step in range(8)} == {100.0}
    assert Lagrangian(budgets, steps=8, ramp=0.0).targets(0) == [4.0, 100.0]


def test_the_penalty_is_linear_plus_quadratic_in_the_share() -> None:
    lagrangian = Lagrangian((CountBudget("a", ((0, "head"),), 4.0, 1.0),), steps=1, ramp=0.0)
    with torch.no_grad():
        lagrangian.multipliers.copy_(torch.tensor([[0.3], [2.0]]))
    penalty, expected = lagrangian.penalty({(0, "head"): torch.tensor([1.0, 1.0, 1.0, 0.0])}, 0)
    assert expected == [3.0]
    assert penalty.item() == pytest.approx(0.3 * 0.5 + (2.0 + QUADRATIC_FLOOR) * 0.25)


def test_multipliers_rise_while_the_size_is_above_its_target() -> None:
    lagrangian = Lagrangian((CountBudget("a", ((0, "head"),), 4.0, 1.0),), steps=1, ramp=0.0)
    penalty, _ = lagrangian.penalty({(0, "head"): torch.ones(4)}, 0)
    penalty.backward()
    lagrangian.ascend()
    assert (lagrangian.multipliers > 0).all()
    assert lagrangian.multipliers.grad is None
