"""The one table of units, and the algebra of what is kept of them."""

from __future__ import annotations

import json
import random

import pytest

from sprunec.families.base_config import everything
from sprunec.plan.schema import load_schema, properties
from sprunec.units import COUNTED, INSIDE, SIZE_TARGETS, UNITS, WHOLE, Kept, Key, counting, gate_units, sublayers_of
from tests.conftest import kept_layer, tiny_config

SOME = Kept(
    (
        kept_layer((1, 3), (0, 2, 5), (3, 4, 9)),
        kept_layer(None, None, tuple(range(40))),
        kept_layer((0, 1, 2, 3), (1,), None),
    )
)


def drawn(kept: Kept, seed: int) -> dict[Key, list[bool]]:
    """Masks over some of the units that are left."""
    draw = random.Random(seed)
    keys = [(layer, unit) for layer in range(len(kept)) for unit in UNITS if kept.units(layer, unit)]
    return {key: [draw.random() < 0.7 for _ in kept.units(*key)] for key in keys if draw.random() < 0.8}


def test_the_schemas_offer_the_units_and_targets_of_the_table() -> None:
    mask = properties("mask")
    assert set(mask["target"]["properties"]) == {*COUNTED, *SIZE_TARGETS}
    assert set(load_schema("mask")["$defs"]["kind"]["enum"]) == {*INSIDE, *WHOLE}


def test_layer_means_both_sublayers() -> None:
    assert gate_units(("layer", "head", "attention")) == ("attention", "feed_forward", "head")
    assert sublayers_of(("layer",)) == sublayers_of(("block",)) == ("attention", "feed_forward")
    assert (counting("num_attention"), counting("num_heads")) == (("attention", "layer"), ("head",))


def test_inside_gives_places_in_what_is_left() -> None:
    before, after = kept_layer((1, 3, 7), (0, 2, 5), (3, 4, 9)), kept_layer((1, 7), (5,), None)
    assert Kept([after]).inside(Kept([before])) == Kept([kept_layer((0, 2), (2,), None)])
    assert Kept([before]).inside(Kept([before])) == Kept([kept_layer((0, 1, 2), (0, 1, 2), (0, 1, 2))])
    without = Kept([kept_layer(None, None, (0,))])
    assert without.inside(without) == without


@pytest.mark.parametrize("seed", range(20))
def test_masks_one_after_the_other_equal_those_of_what_is_left(seed: int) -> None:
    whole = everything(tiny_config())
    first = whole.then(drawn(whole, seed))
    masks = drawn(first, seed + 100)
    second = first.then(masks)
    assert second.inside(first) == Kept.all(map(sizes, first)).then(masks)
    assert second.common(first) == second == first.common(second)


def sizes(layer: dict[str, tuple[int, ...]]) -> dict[str, int]:
    return {unit: len(indices) for unit, indices in layer.items()}


def test_kept_reads_back_from_its_json() -> None:
    data = json.loads(json.dumps(SOME.to_json()))
    assert data[1] == {"heads": None, "dim_head": None, "dim_ff": list(range(40))}
    assert Kept.from_json(data) == SOME


def test_masks_apply_to_what_is_left_in_the_input_models_indices() -> None:
    before = Kept((kept_layer((1, 4, 6), (0, 2), (3, 5, 8)), kept_layer((0,), (1,), None)))
    masks = {(0, "head"): [True, False, True], (0, "dim_ff"): [False, True, True], (1, "head"): [False]}
    assert before.then(masks) == (kept_layer((1, 6), (0, 2), (5, 8)), kept_layer(None, None, None))


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("block", kept_layer(None, None, None)),
        ("attention", kept_layer(None, None, (0, 1))),
        ("feed_forward", kept_layer((0,), (0,), None)),
        ("dim_head", kept_layer(None, None, (0, 1))),
        ("dim_ff", kept_layer((0,), (0,), None)),
    ],
)
def test_a_closed_unit_takes_its_sublayer_with_it(unit: str, expected: dict[str, tuple[int, ...]]) -> None:
    whole = kept_layer((0,), (0,), (0, 1))
    size = 2 if unit == "dim_ff" else 1
    assert Kept([whole]).then({(0, unit): [False] * size}) == (expected,)
