"""Symmetric matrices of which only what is on the diagonal and above is worked on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sprunec.masks.symmetric import (
    NARROW,
    SecondMoment,
    add_second_moment,
    factor_,
    mirror,
    rows_of,
    strips,
    subtract_square,
)

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


@pytest.mark.parametrize("width", WIDTHS)
def test_parts_of_a_moment_are_those_of_the_mean_over_all_rows(width: int) -> None:
    rows, moment = draw(50, width), SecondMoment(width)
    for batch in rows.split([20, 1, 0, 29]):
        moment.add(batch)
    whole, kept = rows.T @ rows / 50, torch.arange(1, width, 2)
    gone = torch.arange(0, width, 2)
    assert torch.allclose(moment.diagonal(), whole.diagonal(), rtol=0, atol=1e-12)
    assert torch.allclose(moment.within(kept).triu(), whole[kept][:, kept].triu(), rtol=0, atol=1e-12)
    assert torch.allclose(torch.cat([*moment.between(kept, gone)]), whole[kept][:, gone], rtol=0, atol=1e-12)
    order = torch.randperm(width, generator=torch.Generator().manual_seed(1))
    for place, strip in zip(strips(width), moment.ordered(order), strict=True):
        assert torch.allclose(strip, whole[order[place]][:, order[place.start :]], rtol=0, atol=1e-12)
    moment.round()
    moment.add(rows)
    assert (
        moment.diagonal().dtype == moment.within(kept).dtype == next(moment.between(kept, gone)).dtype == torch.double
    )
    assert torch.allclose(moment.diagonal(), whole.diagonal(), atol=1e-6)
    assert torch.allclose(moment.within(kept).triu(), whole[kept][:, kept].triu(), atol=1e-6)


def test_a_moment_of_float32_rows_is_summed_in_float64() -> None:
    """A small square behind a large one would be lost in float32."""
    moment = SecondMoment(2)
    for value in (1e4, *[0.5] * 100):
        moment.add(torch.full((1, 2), value))
    assert float(moment.within(torch.tensor([0]))) * 101 == 1e8 + 25
    single = torch.tensor(1e8)
    for _ in range(100):
        single += 0.25
    assert float(single) == 1e8


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
