"""One factor says of every choice from the front of its order what a refit of its own does."""

from __future__ import annotations

import pytest
import torch

from sprunec.errors import PassError
from sprunec.masks.least_squares import refit
from sprunec.masks.search.ordered_factor import OrderedFactor
from sprunec.masks.symmetric import SecondMoment

COUNTS = {
    1: [0],
    7: [1, 3, 6],
    256: [10, 255],
    700: [1, 100, 256, 300, 512, 699],
}  # before, on and behind strips' edges


def inputs_of(width: int, rows: int) -> torch.Tensor:
    """Draw inputs some of which are much larger than others, and alike."""
    draw = torch.Generator().manual_seed(width + rows)
    mixed = torch.randn(rows, width, generator=draw) + 2 * torch.randn(rows, 1, generator=draw)
    return mixed * torch.rand(width, generator=draw).pow(4).mul_(10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", list(COUNTS))
def test_all_choices_are_what_refits_of_their_own_give(width: int, dtype: torch.dtype) -> None:
    draw, moment = torch.Generator().manual_seed(0), SecondMoment(width)
    moment.add(inputs_of(width, width // 2 + 1))
    weight, order = torch.randn(5, width, generator=draw), torch.randperm(width, generator=draw)
    rows, gradients = inputs_of(width, 33), torch.randn(2, 33, 5, generator=draw)
    factor, wanted = OrderedFactor(moment, order, 0.1, dtype), []
    for count in COUNTS[width]:
        kept, new = order[:count].sort().values, torch.zeros_like(weight)
        new[:, kept] = refit(moment, weight, kept, ridge=0.1)
        assert torch.allclose(factor.refit(weight, count), new, atol=1e-6 if dtype == torch.float64 else 2e-5)
        wanted.append(((rows @ (new - weight).T).double() * gradients).sum(-1))
    found = factor.effects(rows, gradients @ weight, COUNTS[width])
    assert found.shape == (len(COUNTS[width]), 2, 33)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), torch.stack(wanted), rtol=1e-4, atol=1e-5 * float(wanted[0].abs().max()))


def test_what_is_not_positive_definite_is_drawn_more_to_the_old_weights() -> None:
    moment, weight = SecondMoment.of(-1e-7 * torch.eye(4) + torch.ones(4, 4)), torch.ones(2, 4)
    factor = OrderedFactor(moment, torch.arange(4), 1e-12)
    assert torch.allclose(factor.refit(weight, 2), torch.tensor([[2.0, 2.0, 0.0, 0.0]] * 2), atol=1e-4)


def test_a_moment_that_is_not_finite_is_told() -> None:
    with pytest.raises(PassError, match="not finite"):
        OrderedFactor(SecondMoment.of(torch.full((3, 3), torch.nan)), torch.arange(3), 0.1)
