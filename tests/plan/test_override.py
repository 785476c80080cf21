"""Values put into a plan from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from sprunec.errors import InputError
from sprunec.plan.plan import check_plan, read_plan

COUNTS = Path(__file__).parents[1] / "plans" / "good" / "counts.json"


CALM = {"/training/learning_rate": 0.5}  # not so high that it is warned of


def test_override_changes_a_value() -> None:
    plan = read_plan(COUNTS, {"/training/learning_rate": 0.5, "/passes/1/target/num_heads": 1})
    assert plan.passes[0].options["learning_rate"] == 0.5
    assert plan.passes[1].options["target"]["num_heads"] == 1


def test_override_makes_a_section() -> None:
    assert read_plan(COUNTS, {"/engine/precision": "bf16", "/seed": 3}).engine.precision == "bf16"


def test_override_is_checked_and_has_no_line() -> None:
    found = check_plan(COUNTS, overrides={"/passes/0/steps": 0, **CALM})[1]
    assert [(f.code, f.pointer, f.line) for f in found] == [("out-of-range", "/passes/0/steps", 0)]


def test_places_beside_an_override_stay() -> None:
    found = check_plan(COUNTS, overrides={"/passes/1/target": {"num_heads": 9}, "/name": "a b", **CALM})[1]
    assert [(f.pointer, f.line) for f in found] == [("/name", 0), ("/passes/1/target/num_heads", 0)]


NOWHERE = ["", "seed", "/passes/9/steps", "/passes/-/steps", "/name/first", "/data/batch_size/a"]


@pytest.mark.parametrize("pointer", NOWHERE)
def test_override_of_no_place_is_an_input_error(pointer: str) -> None:
    with pytest.raises(InputError) as caught:
        read_plan(COUNTS, {pointer: 1})
    assert [finding.code for finding in caught.value.diagnostics] == ["bad-override"]


def test_override_leaves_the_file_alone() -> None:
    before = COUNTS.read_text(encoding="utf-8")
    read_plan(COUNTS, {"/seed": 3})
    assert COUNTS.read_text(encoding="utf-8") == before
