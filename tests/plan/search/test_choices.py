"""What a search chooses among, of models with and without grouped queries, uneven layers and absent sublayers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import pytest

from sprunec.families.base_config import ModelConfig
from sprunec.families.cpm_ant.config import ModelConfig as OwnConfig
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.plan.search.choices import Choice, choices, chosen, nested
from sprunec.units import UNITS
from tests.helpers.small_plans import TINY

LLAMA = {"model_type": "llama", "vocab_size": 97, "hidden_size": 24, "intermediate_size": 64, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 12, "num_key_value_heads": 3, "head_dim": 2}
GROUPED = TransformersConfig.from_source(LLAMA)
OWN = OwnConfig.from_dict(TINY)


def sizes(found: Sequence[Choice], sublayer: str, unit: str, layer: int = 0) -> list[int]:
    return [c.kept.get(unit, 0) for c in found if (c.layer, c.sublayer) == (layer, sublayer)]


def test_key_value_groups_take_their_heads_along() -> None:
    found = choices(GROUPED, ("kv_group",))
    assert sizes(found, "attention", "kv_group") == [3, 2, 1]
    assert sizes(found, "attention", "head") == [12, 8, 4]
    assert sizes(found, "feed_forward", "dim_ff") == [64]  # nobody cuts them, and they are there


def test_heads_are_as_many_in_each_group() -> None:
    assert sizes(choices(GROUPED, ("head",)), "attention", "head") == [12, 9, 6, 3]
    found = choices(GROUPED, ("kv_group", "head"), multiple_of={"num_heads": 2})
    pairs = [(c.kept["kv_group"], c.kept["head"]) for c in found if (c.layer, c.sublayer) == (0, "attention")]
    assert pairs == [(3, 12), (3, 6), (2, 8), (2, 6), (2, 4), (2, 2), (1, 4), (1, 2)]


def test_widths_are_eighths_in_multiples() -> None:
    assert sizes(choices(GROUPED, ("dim_ff",)), "feed_forward", "dim_ff") == [64, 56, 48, 40, 32, 24, 16, 8]
    found = choices(GROUPED, ("dim_ff",), multiple_of={"dim_ff": 24})
    assert sizes(found, "feed_forward", "dim_ff") == [64, 48, 24]  # all of them is no multiple and stays possible


def test_widths_are_divided_finer_where_they_are_a_sublayers_only_numbers() -> None:
    found = choices(GROUPED, ("kv_group", "head", "dim_ff"), finer=4)
    assert sizes(found, "feed_forward", "dim_ff") == [64, *range(62, 7, -2)]  # the least is the first eighth
    assert {*sizes(found, "attention", "kv_group")} == {3, 2, 1}
    several = [c.kept for c in choices(GROUPED, ("head", "dim_head"), finer=4) if c.sublayer == "attention"]
    assert several == [c.kept for c in choices(GROUPED, ("head", "dim_head")) if c.sublayer == "attention"]


def test_numbers_that_are_given() -> None:
    found = choices(GROUPED, ("kv_group", "dim_ff"), {"dim_ff": [16, 64, 100], "num_kv_groups": [2]})
    assert sizes(found, "feed_forward", "dim_ff") == [64, 16]
    assert sizes(found, "attention", "kv_group") == [3, 2]


def test_nested_ones_keep_all_that_those_before_them_do() -> None:
    listed = choices(GROUPED, ("kv_group", "head", "dim_ff", "layer"), {"dim_ff": [8, 24], "num_heads": [1, 2, 4, 6]})
    found = nested(listed)
    assert sorted(map(repr, chain(*found))) == sorted(map(repr, listed))
    assert [[(*choice.kept.values(),)[:2] for choice in some] for some in found if some[0].layer == 0] == [
        [()],
        [(1, 1), (2, 2), (2, 4), (3, 6), (3, 12)],  # heads in each group: 1, 1, 2, 2, 4
        [(1, 2), (1, 4), (2, 8)],
        [(2, 6)],
        [()],
        [(8,), (24,), (64,)],
    ]


@pytest.mark.parametrize(
    ("units", "absent"),
    [
        (("dim_ff",), []),
        (("attention", "dim_ff"), ["attention"]),
        (("layer",), ["attention", "feed_forward"]),
        (("block",), ["block"]),
    ],
)
def test_what_may_be_absent(units: tuple[str, ...], absent: list[str]) -> None:
    for config in (GROUPED, OWN):
        found = [choice for choice in choices(config, units) if choice.layer == 1]
        assert [choice.sublayer for choice in found if not choice.kept] == absent


def test_every_sublayer_that_is_there_has_its_dense_choice_first() -> None:
    uneven = OwnConfig.from_dict(TINY | {"mask_modules": [[True, False], [False, False], [True, True]]})
    found = choices(uneven, ("layer", "head", "dim_head", "dim_ff"))
    assert sorted({(c.layer, c.sublayer) for c in found}) == [
        (0, "feed_forward"),
        (1, "attention"),
        (1, "feed_forward"),
    ]
    first = {(c.layer, c.sublayer): c for c in reversed(found)}
    assert all(choice.is_dense(uneven) for choice in first.values())
    assert sum(choice.is_dense(uneven) for choice in found) == 3
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("config", [GROUPED, OWN], ids=["grouped", "own"])
def test_a_model_of_choices(config: ModelConfig) -> None:
    every = choices(config, tuple(UNITS), multiple_of={"dim_ff": 8})
    assert chosen(config, [choice for choice in every if choice.is_dense(config)]) == config
    for choice in every:
        layers = chosen(config, [choice]).layers
        there = UNITS[choice.sublayer].sublayers
        expected = {u: n for u, n in config.layers[choice.layer].counts.items() if UNITS[u].sublayers[0] not in there}
        assert layers[choice.layer].counts == expected | choice.kept
        assert [layer for i, layer in enumerate(layers) if i != choice.layer] == [
            layer for i, layer in enumerate(config.layers) if i != choice.layer
        ]
