"""Symmetric matrices of which only what is on the diagonal and above is worked on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sprunec.masks.symmetric import NARROW, add_second_moment, factor_, mirror, rows_of, strips, subtract_square

WIDTHS = (3, NARROW, NARROW + 1, 3 * NARROW - 1)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)


@pytest.mark.parametrize("width", WIDTHS)
def test_second_moments_of_batches_are_those_of_all_rows(width: int) -> None:
    rows, total = draw(50, width), torch.zeros(width, width, dtype=torch.double)
    for batch in rows.split([20, 1, 0, 29]):
        add_second_moment(total, batch)
    mirror(total)
    assert torch.equal(total, total.T)
    assert torch.allclose(total, rows.T @ rows, rtol=0, atol=1e-12)


def test_nothing_far_below_the_diagonal_is_computed() -> None:
    total = torch.zeros(4 * NARROW, 4 * NARROW)
    add_second_moment(total, torch.ones(2, len(total)))
    assert int(total.count_nonzero()) == len(total) ** 2 * 10 // 16


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_below_the_diagonal_does_not_count(width: int) -> None:
    rows, factor = draw(2 * width, width), draw(5, width)
    whole = rows.T @ rows
    upper = whole.triu() + torch.full_like(whole, torch.nan).tril(-1)
    some = torch.tensor([width - 1, 0, width // 2])
    assert torch.equal(rows_of(upper, some), rows_of(whole, some))
    assert torch.equal(rows_of(whole.triu(), some), (whole.triu() + whole.triu(1).T)[some])
    changed = whole.clone()
    subtract_square(changed, factor)
    assert torch.allclose(changed.triu(), (whole - factor.T @ factor).triu())


def test_a_factor_takes_the_place_of_its_matrix() -> None:
    rows = draw(20, 10)
    matrix = rows.T @ rows
    wanted, place = torch.linalg.cholesky(matrix), matrix.data_ptr()
    factor = factor_(matrix)
    assert factor is not None
    assert factor.data_ptr() == place
    assert torch.allclose(factor, wanted)
    assert factor_(-torch.eye(3)) is None


@pytest.mark.parametrize("count", [1, 255, 256, 257, 8192, 8193, 14336])
def test_strips_are_all_rows(count: int) -> None:
    assert [row for strip in strips(count) for row in range(strip.start, strip.stop)] == list(range(count))
