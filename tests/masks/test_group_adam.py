"""The gates' optimizer: Adam, but one second moment for a group."""

from __future__ import annotations

import copy

import pytest
import torch

from sprunec.masks.gates import GroupAdam


def gradients(steps: int, size: int) -> torch.Tensor:
    return torch.randn(steps, size, generator=torch.Generator().manual_seed(3))


def walk(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    for gradient in steps:
        parameter.grad = gradient.clone()
        optimizer.step()
        optimizer.zero_grad()
    return parameter.detach().clone()


def test_a_group_of_one_entry_is_adam() -> None:
    ours, theirs = torch.zeros(1), torch.zeros(1)
    path = gradients(50, 1)
    got, wanted = walk(GroupAdam([[ours]], 0.1), ours, path), walk(torch.optim.Adam([theirs], 0.1), theirs, path)
    assert float(wanted.abs()) > 0.1
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_gradients_keep_their_sizes_within_a_group_and_lose_them_across_groups() -> None:
    """Adam would move all four alike."""
    strong, weak, other = torch.zeros(2), torch.zeros(1), torch.zeros(1)
    optimizer = GroupAdam([[strong, weak], [other]], 0.1)
    for _ in range(5):
        strong.grad, weak.grad, other.grad = torch.tensor([4.0, -2.0]), torch.tensor([1.0]), torch.tensor([1e-3])
        optimizer.step()
    assert (strong / weak).tolist() == [pytest.approx(4.0), pytest.approx(-2.0)]
    assert float(other) == pytest.approx(-0.5, rel=1e-5)
    assert float(torch.cat([strong, weak]).square().mean().sqrt()) == pytest.approx(0.5, rel=1e-5)


def test_a_loaded_state_goes_on_where_it_was() -> None:
    path, whole, half = gradients(20, 3), torch.zeros(3), torch.zeros(3)
    wanted = walk(GroupAdam([[whole]], 0.1), whole, path)
    first = GroupAdam([[half]], 0.1)
    walk(first, half, path[:10])
    second = GroupAdam([[half]], 0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(walk(second, half, path[10:]), wanted)


def test_what_has_no_gradient_stays() -> None:
    still, moved = torch.ones(2), torch.ones(2)
    optimizer = GroupAdam([[still], [moved]], 0.1)
    moved.grad = torch.ones(2)
    optimizer.step()
    assert still.tolist() == [1.0, 1.0] and moved.tolist() == [pytest.approx(0.9)] * 2
