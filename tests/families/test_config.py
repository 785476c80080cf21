"""Configs: there and back, cut, counted; and the published sizes."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch

from sprunec.families.base_config import everything, removable, unit_cost
from sprunec.families.cpm_ant.blocks import build
from sprunec.families.cpm_ant.config import Divisors, LayerIndices, LayerShape, ModelConfig
from sprunec.units import SUBLAYERS, Kept
from tests.conftest import TINY, kept_layer, tiny_config

NO_ATTENTION = {3, 10, 13, 14, 15, 17, 19, 21, 22, 25, 26, 28, 32, 34, 35, 37, 38, 41, 43, 44, 45, 46, 47}
NO_FEED_FORWARD = {1, 2, 3, 4, 6, 8, 10, 12, 13, 14, 15, 19, 21, 23, 25, 26, 29, 30, 32, 33, 34, 35, 38}
NO_FEED_FORWARD |= {41, 42, 43, 46}
PUBLISHED = {"dim_model": 4096, "dim_head": 128, "num_layers": 48, "vocab_size": 30720}
SOME = Kept(
    (
        kept_layer((1, 3), (0, 2, 5), (3, 4, 9)),
        kept_layer(None, None, tuple(range(40))),
        kept_layer((0, 1, 2, 3), (1,), None),
    )
)


def one_billion() -> ModelConfig:
    absent = [[i in NO_ATTENTION, i in NO_FEED_FORWARD] for i in range(48)]
    return ModelConfig.from_dict(PUBLISHED | {"num_heads": 16, "dim_ff": 700, "mask_modules": absent})


def ragged(seed: int) -> ModelConfig:
    """What is left of TINY after two random cuts."""
    draw, config = random.Random(seed), tiny_config()
    kept = everything(config)
    for _ in range(2):
        after = Kept(_fewer(draw, layer) for layer in kept)
        config, kept = config.cut(kept, after), after
    return config


def _fewer(draw: random.Random, layer: LayerIndices) -> LayerIndices:
    def some(units: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if not units else tuple(sorted(draw.sample(units, draw.randint(1, len(units)))))

    attention = None if draw.random() < 0.2 else some(layer.get("head"))
    feed_forward = None if draw.random() < 0.2 else some(layer.get("dim_ff"))
    return kept_layer(attention, some(layer.get("dim_head")) if attention else None, feed_forward)


def test_the_published_10b_and_1b_sizes() -> None:
    whole = ModelConfig.from_dict(PUBLISHED | {"num_heads": 32, "dim_ff": 10240})
    assert (whole.parameters(), removable(whole, SUBLAYERS)) == (9_391_624_192, 9_261_420_544 - 4096)
    assert one_billion().parameters() == 1_149_865_984


def test_the_1b_model_cut_to_300m_keeps_its_bias_table() -> None:
    config = one_billion()
    kept = tuple(
        {unit: kept[: {"head": 4, "dim_ff": 350}.get(unit)] for unit, kept in layer.items()}
        for layer in everything(config)
    )
    small = config.cut(everything(config), kept)
    assert small.parameters() == 430_403_584
    assert sum(bool(layer.heads) for layer in small.layers) == 25
    assert sum(bool(layer.dim_ff) for layer in small.layers) == 21
    assert small.divisors == Divisors(16 * 128, 128, 700)


@pytest.mark.parametrize("seed", range(12))
def test_counting_agrees_with_the_model_that_is_built(seed: int) -> None:
    config = ragged(seed)
    with torch.device("meta"):
        model = build(config)
    assert config.parameters() == sum(parameter.numel() for parameter in model.parameters())
    for index, layer in enumerate(model.encoder.layers):
        attention, feed_forward = (
            sum(p.numel() for p in m.parameters()) if m else 0 for m in (layer.self_att, layer.ffn)
        )
        assert (attention, feed_forward) == (
            unit_cost(config, index, "attention"),
            unit_cost(config, index, "feed_forward"),
        )


@pytest.mark.parametrize("seed", range(12))
def test_a_config_reads_back_from_its_json(seed: int) -> None:
    config = ragged(seed)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_dense_config_is_cpm_lives_keys_and_the_divisors() -> None:
    data = tiny_config().to_dict()
    assert data == TINY | {"eps": 1e-6, "family": "cpm-ant"} | {
        "divisors": {"attention_out": 24, "score": 6, "feed_forward_out": 40}
    }
    assert ModelConfig.from_dict(data) == tiny_config()


def test_a_cut_config_says_what_differs_by_layer() -> None:
    config = tiny_config()
    data = config.cut(everything(config), SOME).to_dict()
    assert data["layers"] == [
        {"heads": 2, "dim_head": 3, "dim_ff": 3, "kept_heads": [1, 3]},
        {"heads": None, "dim_head": None, "dim_ff": 40},
        {"heads": 4, "dim_head": 1, "dim_ff": None},
    ]
    assert data["mask_modules"] == [[False, False], [True, False], [False, True]]
    assert data["divisors"] == {"attention_out": 24, "score": 6, "feed_forward_out": 40}


def test_the_older_spelling_of_eps_is_read_and_strange_keys_are_not() -> None:
    old: dict[str, Any] = {"norm_eps": 1e-5, "half": True, "mask_modules": None}
    assert tiny_config(**old) == tiny_config(eps=1e-5)
    assert tiny_config(norm_eps=1e-5, eps=1e-4).eps == 1e-4
    assert ModelConfig.from_dict({}).num_heads == 64


def test_bias_columns_follow_heads_through_two_cuts() -> None:
    shape = LayerShape(4, 6, 40)
    first = shape.cut(Kept.all([shape.counts])[0], kept_layer((0, 2, 3), (0, 1, 2, 3, 4, 5), (0,)), 4)
    assert first == LayerShape(3, 6, 1, (0, 2, 3))
    second = first.cut(kept_layer((0, 2, 3), (0, 1, 2, 3, 4, 5), (0,)), kept_layer((3,), (1, 4), None), 4)
    assert second == LayerShape(1, 2, 0, (3,))


def test_a_model_that_comes_cut_counts_its_heads_anew_but_keeps_its_columns() -> None:
    shape = LayerShape(2, 6, 40, (1, 3))
    assert Kept.all([shape.counts])[0]["head"] == (0, 1)
    assert shape.cut(Kept.all([shape.counts])[0], kept_layer((1,), (0, 1), (0,)), 4).kept_heads == (3,)


def test_cutting_other_units_leaves_bias_columns_alone() -> None:
    before = kept_layer((0, 2), (0, 1), (0, 1))
    shape = LayerShape(2, 2, 2, (0, 2))
    assert shape.cut(before, kept_layer((0, 2), (1,), (0,)), 4) == LayerShape(2, 1, 1, (0, 2))
    assert LayerShape(4, 6, 40).cut(Kept.all([LayerShape(4, 6, 40).counts])[0], SOME[2], 4).kept_heads is None


def test_a_layer_without_attention_has_neither_dims_nor_columns() -> None:
    shape = LayerShape(2, 3, 4, (1, 3))
    assert shape.cut(kept_layer((1, 3), (0, 1, 2), (0,)), kept_layer(None, None, (0,)), 4) == LayerShape(0, 0, 1)
    assert Kept.all([LayerShape(0, 0, 4).counts])[0] == kept_layer(None, None, (0, 1, 2, 3))
    assert Kept.all([LayerShape(2, 3, 0).counts])[0] == kept_layer((0, 1), (0, 1, 2), None)


def test_two_cuts_equal_one() -> None:
    config, whole = tiny_config(), everything(tiny_config())
    later = (kept_layer((3,), (0, 5), (9,)), kept_layer(None, None, None), kept_layer((0, 2), (1,), None))
    assert config.cut(whole, SOME).cut(SOME, later) == config.cut(whole, later)
