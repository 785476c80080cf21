"""What a pruner can get wrong without a word: sums that cancel, shapes of another layer, gates that no longer move."""

from __future__ import annotations

import pytest
import torch

from sprunec.families.base_config import unit_sizes
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.masks.budgets import fill_all, make_budgets
from sprunec.masks.gates import kept_probability, sample
from sprunec.masks.lagrangian import Lagrangian
from sprunec.units import Key
from tests.helpers.small_plans import TINY

HOLES = [[False, False], [True, False], [False, True], [True, False]]
RAGGED = ModelConfig.from_dict(TINY | {"num_layers": 4, "mask_modules": HOLES})


def open_gates(config: ModelConfig, *units: str) -> dict[Key, torch.Tensor]:
    return {key: torch.ones(size) for key, size in unit_sizes(config, units).items()}


def test_a_layer_above_its_target_and_one_below_do_not_cancel() -> None:
    config = ModelConfig.from_dict(TINY | {"num_layers": 2})
    budgets = make_budgets(config, ("head",), {"num_heads": 2}, "per-layer")
    lagrangian = Lagrangian(budgets, steps=10, ramp=0.0)
    met = {(0, "head"): torch.full((4,), 0.5), (1, "head"): torch.full((4,), 0.5)}
    crossed = {(0, "head"): torch.ones(4), (1, "head"): torch.zeros(4)}
    assert sum(float(value.sum()) for value in met.values()) == sum(float(value.sum()) for value in crossed.values())
    assert lagrangian.penalty(met, 9)[0].item() == pytest.approx(0.0, abs=1e-12)
    assert lagrangian.penalty(crossed, 9)[0].item() > 1.0


@pytest.mark.parametrize("log_alpha", [-25.0, 12.5, 14.0])
def test_a_gate_far_open_or_closed_still_feels_the_constraint(log_alpha: float) -> None:
    """Clamping the probability would leave exactly no gradient from about 12 on."""
    gate = torch.tensor([log_alpha], requires_grad=True)
    kept_probability(gate).sum().backward()
    assert gate.grad is not None
    assert float(gate.grad) > 0.0


def test_the_expected_size_does_not_fall_through_its_target() -> None:
    """Without a ramp, 16 heads fall to 2 on their way to 4."""
    config = ModelConfig.from_dict(TINY | {"num_heads": 16, "num_layers": 1})
    budgets = make_budgets(config, ("head",), {"num_heads": 4}, "per-layer")
    lagrangian = Lagrangian(budgets, steps=300, ramp=0.5)
    gates = torch.linspace(1.5, 2.5, 16).requires_grad_()
    optimizer = torch.optim.Adam([gates], lr=0.1)
    sizes = []
    for step in range(300):
        penalty, expected = lagrangian.penalty({(0, "head"): kept_probability(gates)}, step)
        penalty.backward()
        optimizer.step()
        optimizer.zero_grad()
        lagrangian.ascend()
        sizes += expected
    assert min(sizes) > 3.5
    assert sizes[-1] == pytest.approx(4.0, abs=0.3)


@pytest.mark.parametrize("unit", ["layer", "block", "attention", "feed_forward"])
def test_an_unpruned_model_has_sparsity_0_whatever_its_last_layer_lacks(unit: str) -> None:
    """Norms are in the numerator and in the denominator, and each layer counts its own parameters."""
    (budget,) = make_budgets(RAGGED, (unit,), {"sparsity": 0.5}, "global")
    attention, feed_forward = (4 * 24 + 1) * 24, (3 * 40 + 1) * 24
    own = {"attention": 2 * attention, "feed_forward": 3 * feed_forward}
    whole = own.get(unit, 2 * attention + 3 * feed_forward)
    assert budget.full == whole
    assert float(budget.expected(open_gates(RAGGED, unit))) == whole
    assert budget.target == whole / 2


@pytest.mark.parametrize("sparsity", [0.2, 0.45, 0.5, 0.67, 0.8])
def test_attention_and_feed_forward_are_rounded_together(sparsity: float) -> None:
    """Each rounded alone, a pair of roundings can miss the target by a sublayer each."""
    (budget,) = make_budgets(RAGGED, ("layer",), {"sparsity": sparsity}, "global")
    noise = torch.Generator().manual_seed(1)
    scores = {key: torch.rand(size, generator=noise) for key, size in unit_sizes(RAGGED, ("layer",)).items()}
    masks = fill_all((budget,), scores)
    left = float(budget.expected({key: mask.double() for key, mask in masks.items()}))
    assert 0.0 <= budget.target - left < (3 * 40 + 1) * 24


def test_units_that_are_all_alike_are_not_thresholded_away_together() -> None:
    """Thresholded one by one, 12 gates at 0.55 all close, and at 0.5 all stay."""
    config = ModelConfig.from_dict(TINY | {"num_layers": 12})
    for sparsity, count in ((0.5, 6), (0.55, 5)):
        (budget,) = make_budgets(config, ("attention",), {"sparsity": sparsity}, "global")
        alike = {key: torch.full((1,), -0.1) for key in unit_sizes(config, ("attention",))}
        assert sum(int(mask.sum()) for mask in fill_all((budget,), alike).values()) == count


def test_draws_are_stretched_as_the_expected_size_takes_them_to_be() -> None:
    """Without the stretch no draw is ever exactly 0 or 1, and the constraint is about another law."""
    noise = torch.Generator().manual_seed(0)
    log_alpha = torch.full((30_000,), 0.3)
    drawn = sample(log_alpha, torch.rand(30_000, generator=noise))
    assert int((drawn == 0).sum()) > 1000
    assert int((drawn == 1).sum()) > 1000
    assert float((drawn > 0).double().mean()) == pytest.approx(float(kept_probability(log_alpha[:1])), abs=0.01)
