"""Heads in key-value groups: as many in each group, any of them; a group takes its heads along."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sprunec.families.base_config import Amount, layer_sizes
from sprunec.masks.granularity import groups, remainder, with_followers
from sprunec.units import Kept, gate_units
from tests.helpers.cut_lms import saved

KEY = (0, "head")
SCORES = torch.tensor([5.0, 1.0, 3.0, 2.0, 9.0, 4.0])  # two groups of three heads


def test_heads_of_one_rank_in_their_groups_go_together() -> None:
    found = groups(KEY, SCORES, 1, within=2)
    assert [units for _, _, units in found] == [(0, 4), (2, 5), (1, 3)]
    assert [mean for mean, _, _ in found] == [7.0, 3.5, 1.5]


def test_multiples_count_heads_of_all_groups() -> None:
    assert [units for _, _, units in groups(KEY, SCORES, 4, within=2)] == [(0, 2, 4, 5)]
    assert sorted(remainder(SCORES, 4, within=2).tolist()) == [1, 3]
    assert remainder(SCORES, 2, within=2).numel() == 0


def test_without_groups_nothing_is_new() -> None:
    assert [units for _, _, units in groups(KEY, SCORES, 2)] == [(4, 0), (5, 2), (3, 1)]
    assert [units for _, _, units in groups(KEY, SCORES, 4, worst_first=True)] == [(2, 5, 0, 4)]


def test_heads_are_open_as_far_as_their_group_is() -> None:
    gates = {(0, "kv_group"): torch.tensor([1.0, 0.25]), KEY: torch.tensor([1.0, 0.5, 1.0, 1.0, 1.0, 0.0])}
    assert with_followers(gates)[KEY].tolist() == [1.0, 0.5, 1.0, 0.25, 0.25, 0.0]


def test_a_closed_group_closes_its_heads_and_the_last_one_their_sublayer() -> None:
    whole = Kept.all([{"kv_group": 2, "head": 6, "dim_head": 4, "dim_ff": 3}])
    left = whole.then({(0, "kv_group"): [False, True]})
    assert (left[0]["kv_group"], left[0]["head"]) == ((1,), (3, 4, 5))
    fewer = left.then({KEY: [True, False, True]})
    assert fewer[0]["head"] == (3, 5)
    assert "head" not in fewer.then({(0, "kv_group"): [False]})[0]
    assert Kept.from_json(fewer.to_json()) == fewer


@pytest.mark.parametrize(
    ("units", "kept", "left"),
    [
        (("kv_group", "dim_ff"), {"kv_group": (1, 1), "dim_ff": (10, 1)}, {"kv_group": 1, "dim_ff": 10}),
        (("kv_group", "feed_forward"), {"kv_group": (1, 1), "feed_forward": (0, 0)}, {"kv_group": 1, "dim_ff": 0}),
        (("kv_group", "layer"), {"kv_group": (1, 1), "feed_forward": (0, 0)}, {"kv_group": 1, "dim_ff": 0}),
        (("kv_group", "head", "dim_ff"), {"head": (2, 1), "dim_ff": (10, 1)}, {"head": 2, "dim_ff": 10}),
        (("dim_ff", "attention"), {"dim_ff": (10, 1), "attention": (0, 0)}, {"dim_ff": 10, "kv_group": 0, "head": 0}),
    ],
    ids="-".join,
)
def test_groups_are_counted_beside_units_of_other_sublayers(
    units: tuple[str, ...], kept: dict[str, tuple[int, int]], left: dict[str, int], tmp_path: Path
) -> None:
    """What is asked of a sublayer is asked of those that have it: a feed-forward has no groups."""
    _, config, _ = saved("llama", tmp_path)
    amounts = {(0, unit): Amount(*amount) for unit, amount in kept.items()}
    before, after = (layer_sizes(config, gate_units(units), each) for each in ({}, amounts))
    first, *others = config.layers
    small = config.with_layers([first.resized(left), *others])
    assert sum(before) - sum(after) == config.parameters() - small.parameters()
