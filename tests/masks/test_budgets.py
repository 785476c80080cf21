"""Budgets are met exactly by counts, and never overrun by sizes, on models of any shape."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sprunec.errors import PassError
from sprunec.families.base_config import everything, removable, unit_sizes
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.masks.budgets import Budget, CountBudget, fill_all, make_budgets, settled
from sprunec.masks.size_budget import SizeBudget
from sprunec.units import SUBLAYERS, Key
from tests.conftest import tiny_config

UNITS = (
    ("head",),
    ("dim_ff",),
    ("dim_head",),
    ("layer",),
    ("block",),
    ("attention",),
    ("feed_forward",),
    ("head", "dim_ff"),
    ("layer", "head", "dim_ff"),
    ("block", "dim_head"),
)


def ragged(seed: int) -> ModelConfig:
    """Layers of all widths; some lack a sublayer, at least one has both."""
    draw = random.Random(seed)
    layers: list[dict[str, Any]] = [{"heads": 2, "dim_head": 3, "dim_ff": 7, "kept_heads": [1, 3]}]
    for _ in range(draw.randint(1, 4)):
        heads, dims = draw.choice([0, 1, 2, 4]), draw.choice([1, 2, 6])
        entry = {"heads": heads or None, "dim_head": dims if heads else None, "dim_ff": draw.choice([None, 1, 5, 40])}
        layers.append(entry | ({"kept_heads": list(range(heads))} if heads not in (0, 4) else {}))
    return tiny_config(num_layers=len(layers), layers=layers)


def scores(config: ModelConfig, units: tuple[str, ...], seed: int = 0) -> dict[Key, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {key: torch.rand(size, generator=noise) for key, size in unit_sizes(config, units).items()}


def lists(masks: dict[Key, Tensor]) -> dict[Key, list[bool]]:
    return {key: mask.tolist() for key, mask in masks.items()}


def left(config: ModelConfig, masks: dict[Key, Tensor]) -> ModelConfig:
    return config.cut(everything(config), everything(config).then(lists(masks)))


def test_counts_per_layer_are_exact_and_keep_the_best() -> None:
    config = tiny_config()
    given_scores = scores(config, ("head",))
    masks = fill_all(make_budgets(config, ("head",), {"num_heads": 2}, "per-layer"), given_scores)
    for key, mask in masks.items():
        assert mask.tolist() == (given_scores[key] >= given_scores[key].sort().values[2]).tolist()
    assert [layer.heads for layer in left(config, masks).layers] == [2, 2, 2]


def test_counts_over_the_model_go_where_the_scores_are() -> None:
    config = tiny_config()
    given_scores = {(0, "head"): torch.tensor([9.0, 8, 7, 6]), (1, "head"): torch.zeros(4), (2, "head"): torch.ones(4)}
    masks = fill_all(make_budgets(config, ("head",), {"num_heads": 2}, "global"), given_scores)
    assert [mask.sum().item() for mask in masks.values()] == [4, 0, 2]
    assert [layer.heads for layer in left(config, masks).layers] == [4, 0, 2]


def test_ties_go_to_the_first() -> None:
    (budget,) = make_budgets(tiny_config(), ("head",), {"num_heads": 1}, "global")
    masks = budget.fill({(index, "head"): torch.ones(4) for index in range(3)}, {})
    assert [mask.tolist() for mask in masks.values()] == [[True] * 3 + [False], [False] * 4, [False] * 4]


@given(seed=st.integers(0, 10_000), count=st.integers(1, 6), budget=st.sampled_from(["per-layer", "global"]))
@settings(max_examples=50, deadline=None)
def test_counts_hold_on_ragged_models(seed: int, count: int, budget: str) -> None:
    config = ragged(seed)
    units, target = ("head", "dim_head", "dim_ff"), {"num_heads": count, "dim_head": count, "dim_ff": count}
    budgets = make_budgets(config, units, target, budget)
    masks = fill_all(budgets, scores(config, units, seed))
    assert masks.keys() == unit_sizes(config, units).keys()
    for each in budgets:
        got = sum(int(masks[key].sum()) for key in each.keys)
        there = sum(masks[key].numel() for key in each.keys)
        assert got == each.target == min(count * (len(each.keys) if budget == "global" else 1), there)
        assert float(each.expected(masks)) == got


@given(seed=st.integers(0, 10_000), units=st.sampled_from(UNITS), share=st.floats(0.05, 0.95))
@settings(max_examples=50, deadline=None)
def test_sparsity_is_never_missed(seed: int, units: tuple[str, ...], share: float) -> None:
    config = ragged(seed)
    (budget,) = make_budgets(config, units, {"sparsity": share}, "global")
    masks = budget.fill(scores(config, units, seed), {})
    assert size_of(budget, masks) <= budget.target == pytest.approx((1 - share) * budget.full)


@pytest.mark.parametrize("units", UNITS)
def test_nothing_that_was_cut_would_still_fit(units: tuple[str, ...]) -> None:
    for seed in range(8):
        config = ragged(seed)
        (budget,) = make_budgets(config, units, {"sparsity": 0.3 + 0.05 * seed}, "global")
        masks = budget.fill(scores(config, units, seed), {})
        size = size_of(budget, masks)
        for key, mask in masks.items():
            for place in (~mask).nonzero().flatten().tolist():
                grown = size_of(budget, masks | {key: mask.index_fill(0, torch.tensor([place]), True)})
                assert grown > budget.target or grown == size


def size_of(budget: Budget, masks: dict[Key, Tensor]) -> float:
    return float(budget.expected({key: mask.double() for key, mask in masks.items()}))


@given(seed=st.integers(0, 10_000), units=st.sampled_from(UNITS), share=st.floats(0.05, 0.95))
@settings(max_examples=50, deadline=None)
def test_parameters_are_counted_as_the_cut_config_counts_them(seed: int, units: tuple[str, ...], share: float) -> None:
    config, whole = ragged(seed), ragged(seed).parameters()
    least = float(SizeBudget("all", config, units, True, 0).expected(_nothing(config, units)))
    target = round(least + share * (whole - least))
    (budget,) = make_budgets(config, units, {"parameters": target}, "global")
    masks = budget.fill(scores(config, units, seed), {})
    size = left(config, masks).parameters()
    assert size_of(budget, masks) == size <= target
    assert budget.full == whole


def _nothing(config: ModelConfig, units: tuple[str, ...]) -> dict[Key, Tensor]:
    return {key: torch.zeros(size) for key, size in unit_sizes(config, units).items()}


@pytest.mark.parametrize("unit", ["head", "dim_head", "dim_ff"])
@pytest.mark.parametrize("seed", range(5))
def test_sizes_come_within_one_unit_where_all_units_weigh_the_same(unit: str, seed: int) -> None:
    config = tiny_config()
    each = {"head": 576, "dim_head": 384, "dim_ff": 72}[unit]
    target = config.parameters() - random.Random(seed).randint(1, 5000)
    (budget,) = make_budgets(config, (unit,), {"parameters": target}, "global")
    size = left(config, budget.fill(scores(config, (unit,), seed), {})).parameters()
    assert target - each < size <= target
    assert budget.unit == each


def test_sparsity_counts_only_what_its_units_can_remove() -> None:
    config = tiny_config()
    full = {units: make_budgets(config, units, {"sparsity": 0.5}, "global")[0].full for units in UNITS}
    assert full[("head",)] == full[("dim_head",)] == 3 * 4 * 24 * 24
    assert full[("dim_ff",)] == 3 * 3 * 24 * 40
    assert full[("attention",)] == 3 * (4 * 24 * 24 + 24)
    assert full[("layer",)] == full[("block",)] == removable(config, SUBLAYERS)


def test_a_sublayer_without_units_counts_no_norm() -> None:
    config = tiny_config()
    budget = SizeBudget("all", config, ("head",), whole=True, target=0)
    kept = {(0, "head"): torch.zeros(4), (1, "head"): torch.tensor([1.0, 0, 0, 0])}
    assert float(budget.expected(kept)) == config.parameters() - (4 * 576 + 24) - 3 * 576


def test_expected_sizes_are_products_of_probabilities() -> None:
    config = tiny_config(num_layers=1)
    budget = SizeBudget("all", config, ("block", "layer", "head"), whole=False, target=0)
    kept = {(0, "block"): 0.5, (0, "attention"): 0.8, (0, "feed_forward"): 0.25}
    values = {key: torch.tensor([p]) for key, p in kept.items()} | {(0, "head"): torch.tensor([0.5, 0.5, 0, 0])}
    attention = 0.8 * (0.75 * 24 + 1.0 * 576)
    assert float(budget.expected(values)) == pytest.approx(0.5 * (attention + 0.25 * (24 + 3 * 40 * 24)), rel=1e-6)


def test_gradients_of_the_expected_size_reach_every_probability() -> None:
    config, units = tiny_config(), ("layer", "head", "dim_ff")
    kept = {key: torch.full((n,), 0.7, requires_grad=True) for key, n in unit_sizes(config, units).items()}
    make_budgets(config, units, {"sparsity": 0.5}, "global")[0].expected(kept).backward()
    assert all(value.grad is not None and (value.grad > 0).all() for value in kept.values())


def test_a_target_below_the_rest_is_an_error() -> None:
    with pytest.raises(PassError, match="1,000 is below what is left when every unit of this pass is cut"):
        make_budgets(tiny_config(), ("head",), {"parameters": 1000}, "global")


def test_sublayers_are_counted_over_the_model() -> None:
    config = tiny_config(mask_modules=[[True, False], [False, False], [False, True]])
    budgets = make_budgets(config, ("layer",), {"num_attention": 1, "num_feed_forward": 5}, "global")
    assert [(b.name, b.full, b.target) for b in budgets] == [("num_attention", 2, 1), ("num_feed_forward", 2, 2)]
    masks = fill_all(budgets, {key: torch.tensor([float(key[0])]) for key in unit_sizes(config, ("layer",))})
    assert [(layer.heads, layer.dim_ff) for layer in left(config, masks).layers] == [(0, 40), (0, 40), (4, 0)]


def test_settled_is_half_a_unit_or_two_percent() -> None:
    small, large = CountBudget("few", (), 8.0, 4.0), CountBudget("many", (), 1000.0, 400.0)
    assert settled(small, 4.5)
    assert settled(small, 3.5)
    assert not settled(small, 4.51)
    assert settled(large, 420.0)
    assert settled(large, 380.0)
    assert not settled(large, 421.0)
