"""The hard concrete distribution: draws against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from sprunec.masks.gates import BETA, GAMMA, ZETA, kept_probability, sample, undecided

DRAWS = 200_000


def draw(log_alpha: float) -> torch.Tensor:
    return sample(torch.tensor(log_alpha), torch.rand(DRAWS, generator=torch.Generator().manual_seed(1)))


def smallest(log_alpha: float, bound: float) -> float:
    """P(stretched s <= bound), from the logistic distribution of logit u."""
    inside = (bound - GAMMA) / (ZETA - GAMMA)
    logit = BETA * math.log(inside / (1 - inside)) - log_alpha
    return 1 / (1 + math.exp(-logit))


@pytest.mark.parametrize("log_alpha", [-4.0, -1.5, 0.0, 0.7, 2.0])
def test_the_share_of_open_draws_is_the_kept_probability(log_alpha: float) -> None:
    share = float((draw(log_alpha) > 0).double().mean())
    exact = float(kept_probability(torch.tensor(log_alpha, dtype=torch.double)))
    assert exact == pytest.approx(1 - smallest(log_alpha, 0.0), abs=1e-9)
    assert share == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / DRAWS) + 1e-6)


@pytest.mark.parametrize("bound", [0.1, 0.5, 0.9])
def test_draws_follow_the_closed_form_between_the_ends(bound: float) -> None:
    share = float((draw(0.4) <= bound).double().mean())
    assert share == pytest.approx(smallest(0.4, bound), abs=0.005)


def test_draws_reach_both_ends_exactly() -> None:
    gates = draw(0.0)
    assert float(gates.min()) == 0.0
    assert float(gates.max()) == 1.0
    assert float((gates == 1.0).double().mean()) == pytest.approx(1 - smallest(0.0, 1.0), abs=0.005)


def test_a_draw_is_the_formula_of_the_paper() -> None:
    noise, log_alpha = torch.tensor([0.3, 0.6]), torch.tensor([0.2, -0.5])
    soft = torch.sigmoid((noise.log() - (1 - noise).log() + log_alpha) / (2 / 3))
    assert torch.allclose(sample(log_alpha, noise), (soft * 1.2 - 0.1).clamp(0, 1), atol=1e-6)


def test_the_gradient_of_a_draw_reaches_log_alpha() -> None:
    log_alpha = torch.tensor([0.3, 0.3, 0.3], dtype=torch.double, requires_grad=True)
    noise = torch.tensor([0.5, 1e-4, 1 - 1e-4], dtype=torch.double)
    sample(log_alpha, noise).sum().backward()
    shifted = sample(log_alpha.detach() + 1e-6, noise) - sample(log_alpha.detach() - 1e-6, noise)
    assert torch.allclose(log_alpha.grad, shifted / 2e-6, atol=1e-6)
    assert log_alpha.grad[0] > 0.1
    assert log_alpha.grad[1:].tolist() == [0.0, 0.0]


def test_noise_at_the_ends_gives_no_nan() -> None:
    log_alpha = torch.zeros(2, requires_grad=True)
    gates = sample(log_alpha, torch.tensor([0.0, 1.0]))
    gates.sum().backward()
    assert gates.tolist() == [0.0, 1.0]
    assert torch.isfinite(log_alpha.grad).all()


def test_undecided_gates_are_those_in_between() -> None:
    shift = BETA * math.log(-GAMMA / ZETA)
    sure = math.log(0.9 / 0.1)
    log_alpha = torch.tensor([-9.0, shift - sure - 0.01, shift - sure + 0.01, 0.0, shift + sure - 0.01, 9.0])
    assert undecided(log_alpha) == 2 + int(abs(shift) < sure)
    assert undecided(torch.tensor([shift + sure + 0.01])) == 0
