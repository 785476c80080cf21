"""What choices cost adds up to what the one arithmetic says of the cut model, to the last number."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from sprunec.families.base_config import ModelConfig, unit_cost
from sprunec.families.cards import card_of
from sprunec.families.cpm_ant.config import ModelConfig as OwnConfig
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.graph.arithmetic import Text, forward
from sprunec.graph.model_size import ModelSize
from sprunec.plan.search import costs as measures
from sprunec.plan.search.choices import Choice, choices, chosen
from sprunec.plan.search.costs import costs
from sprunec.plan.targets import Left
from sprunec.units import sublayers_of
from tests.helpers.causal_lms import CONFIGS
from tests.helpers.small_plans import TINY

UNITS = ("kv_group", "head", "dim_ff", "layer")
SLIDING: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}


def config_of(name: str) -> ModelConfig:
    if name == "cpm-ant":
        return OwnConfig.from_dict(TINY)
    return TransformersConfig.from_source(
        {"model_type": name, **CONFIGS[name], **(SLIDING if name == "gemma3_text" else {})}
    )


NAMES = ("llama", "qwen3", "gemma3_text", "gpt2", "gpt_neox", "cpm-ant")
MEASURES = {
    "parameters": measures.parameters,
    "a decoded token": measures.operations(100),
    "a text": measures.operations(100, 100),
    "weights": measures.weight_bytes(4),
    "cache": measures.cache_bytes(3, 100),
    "memory": measures.memory(3, 100, 2),
}


def solutions(config: ModelConfig, found: Sequence[Choice], count: int = 12) -> list[list[int]]:
    """Take one choice a sublayer at random, and now and then that a block is absent."""
    draw, drawn = random.Random(0), []
    for _ in range(count):
        numbers = []
        for index, layer in enumerate(config.layers):
            of = {
                kind: [n for n, c in enumerate(found) if (c.layer, c.sublayer) == (index, kind)]
                for kind in ("block", *sublayers_of(layer.counts))
            }
            gone = of.pop("block")
            numbers += gone if gone and draw.random() < 0.3 else [draw.choice(each) for each in of.values()]
        drawn.append(numbers)
    return drawn


@pytest.mark.parametrize("what", MEASURES)
@pytest.mark.parametrize("name", NAMES)
def test_base_and_choices_sum_to_the_cut_model(name: str, what: str) -> None:
    config, measure = config_of(name), MEASURES[what]
    found = choices(config, (*UNITS, "block"))
    taken = costs(config, found, measure)
    for numbers in solutions(config, found):
        assert taken.total(numbers) == measure(chosen(config, [found[number] for number in numbers]))
    dense = [number for number, choice in enumerate(found) if choice.is_dense(config)]
    assert taken.total(dense) == measure(config)


@pytest.mark.parametrize("name", NAMES)
def test_measures_are_what_the_rooms_above_count(name: str) -> None:
    config, text = config_of(name), Text(1, 100)
    assert measures.operations(100, 100)(config) == forward(ModelSize(Left.of(config), 2.0), text, head=True)
    assert measures.cache_bytes(1, 1)(config) == card_of(config).cache_bytes(config)
    absent = costs(config, [Choice(0, "block", {}), *choices(config, ())[:2]], measures.parameters)
    assert sum(absent.each) == unit_cost(config, 0, "block")


def test_a_window_holds_no_more_than_its_positions() -> None:
    config = config_of("gemma3_text")
    each = 2 * 2 * 10 * 2  # keys and values of two groups of ten dims, two bytes each
    found = costs(config, choices(config, ()), measures.cache_bytes(3, 100))
    assert found.base == 0 and found.each == (3 * 8 * each, 0, 3 * 100 * each, 0)


@pytest.mark.parametrize("name", ["gptj", "cohere2"])
def test_what_both_sublayers_share_goes_with_their_block(name: str) -> None:
    config = config_of(name)
    bare = chosen(config, [Choice(0, "block", {})])
    found = [Choice(0, "attention", {}), Choice(0, "feed_forward", {}), Choice(0, "block", {}), *choices(config, ())]
    taken = costs(config, found, measures.parameters)
    assert taken.total([2, 5, 6]) == bare.parameters() < taken.total([0, 1, 5, 6])


def test_layers_that_are_alike_are_measured_once() -> None:
    measured, config = [], config_of("llama").with_layers(40 * config_of("llama").layers)
    costs(config, choices(config, UNITS), lambda each: float(measured.append(each) or each.parameters()))
    assert len(measured) < 30
