"""Units, targets, and what is left of a model from pass to pass."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from sprunec.families.base_config import removable, unit_cost
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.plan.targets import Left, mismatched, parameter_count, uncovered
from sprunec.units import SUBLAYERS
from tests.helpers.small_plans import TINY


def left(**changes: Any) -> Left:
    return Left.of(ModelConfig.from_dict(TINY | changes))


@pytest.mark.parametrize(
    ("written", "count"),
    [("300M", 300_000_000), ("1.5B", 1_500_000_000), ("250K", 250_000), ("0.0001K", 0), (12, 12), (12.0, 12)],
)
def test_parameter_count(written: Any, count: int) -> None:
    assert parameter_count(written) == count


def test_which_target_counts_which_unit() -> None:
    assert mismatched(("layer",), {"num_layers": 1, "num_attention": 1}) == ["num_layers"]
    assert uncovered(("layer", "head"), {"num_attention": 1}) == ["num_feed_forward", "num_heads"]
    assert uncovered(("layer", "head"), {"sparsity": 0.5}) == []


def test_heads_that_are_left() -> None:
    after = left().after({"num_heads": 2}, "per-layer")
    assert after.most("num_heads", "per-layer") == 2
    assert after.parameters == left().parameters - 3 * 2 * 4 * 6 * 24


def test_global_budget_leaves_a_mean() -> None:
    after = left().after({"num_heads": 2}, "global")
    assert (after.most("num_heads", "global"), after.most("num_heads", "per-layer")) == (2, 4)
    assert after.means["num_heads"] == Fraction(2)
    assert not after.known


def test_blocks_take_their_sublayers_along() -> None:
    after = left().after({"num_layers": 2}, "global")
    assert (after.counts["num_attention"], after.counts["num_feed_forward"]) == (2, 2)
    assert after.parameters == left(num_layers=2).parameters


def test_unlike_layers_leave_the_size_open() -> None:
    uneven = left(mask_modules=[[True, False], [False, False], [False, False]])
    after = uneven.after({"num_layers": 2}, "global")
    assert not after.known
    assert after.parameters == uneven.parameters
    assert after.counts["num_layers"] == 2


def test_size_target_bounds_the_next() -> None:
    after = left().after({"parameters": 15_000}, "global")
    assert after.parameters == 15_000
    assert after.most("num_heads", "per-layer") == 4


def test_least_parameters_are_those_of_the_other_units() -> None:
    everything, config = left(), ModelConfig.from_dict(TINY)
    attention = sum(unit_cost(config, index, "attention") for index in range(3))
    assert everything.least_parameters(("head",)) == everything.parameters - attention
    assert everything.least_parameters(("layer",)) == everything.parameters - removable(config, SUBLAYERS)
    assert everything.unknown().least_parameters(("head",)) == everything.parameters - removable(config, SUBLAYERS)
