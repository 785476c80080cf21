"""Targets above what there is: gates are held to what can be kept, and what was asked for is told beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sprunec.cli import main
from sprunec.errors import PassError
from sprunec.families.base_config import unit_sizes
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.masks.budgets import Budget, fill_all, make_budgets
from sprunec.plan.planned_sizes import short_layers, short_message
from sprunec.plan.schema import validator
from sprunec.plan.targets import Left
from tests.conftest import tiny_config
from tests.helpers.small_plans import EMIT, MODEL, TRAIN, execute, mask_pass, plan, read_report, write
from tests.masks.test_budgets import left, ragged, scores

UNEVEN: list[dict[str, Any]] = [
    {"heads": 2, "dim_head": 8, "dim_ff": 48, "kept_heads": [0, 2]},
    {"heads": 1, "dim_head": 8, "dim_ff": 20, "kept_heads": [1]},
    {"heads": 3, "dim_head": 4, "dim_ff": 7, "kept_heads": [1, 2, 5]},
]


def uneven_plan(*passes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return plan(TRAIN, *passes, **{"model": {"config": MODEL | {"layers": UNEVEN}}} | changes)


def score(unit: Any, target: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"pass": "score-mask", "criterion": "magnitude", "unit": unit, "target": target, **options}


def asked(report: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    return [(row["name"], row["asked"], row["target"], row["got"]) for row in report["budgets"]]


def notes(report: dict[str, Any]) -> list[str]:
    return [note for entry in report["passes"] for note in entry["metrics"].get("notes", [])]


@given(seed=st.integers(0, 10_000), count=st.integers(1, 12), multiple=st.sampled_from([1, 2, 3]))
@settings(max_examples=60, deadline=None)
def test_what_is_asked_is_the_plans_and_what_is_kept_is_the_target(seed: int, count: int, multiple: int) -> None:
    config, units = ragged(seed), ("head", "dim_head", "dim_ff")
    names = ("num_heads", "dim_head", "dim_ff")
    target, multiples = dict.fromkeys(names, count * multiple), dict.fromkeys(names, multiple)
    for kind in ("per-layer", "global"):
        budgets = make_budgets(config, units, target, kind, multiple_of=multiples)
        masks = fill_all(budgets, scores(config, units, seed))
        for each in budgets:
            got = sum(int(masks[key].sum()) for key in each.keys)
            assert got == each.target <= each.asked
            assert each.asked == count * multiple * (len(each.keys) if kind == "global" else 1)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 12), multiple=st.sampled_from([1, 2, 3]))
@settings(max_examples=60, deadline=None)
def test_the_plan_names_the_layers_that_the_budgets_clamp(seed: int, count: int, multiple: int) -> None:
    config, wanted = ragged(seed), count * multiple
    for key, unit in (("num_heads", "head"), ("dim_head", "dim_head"), ("dim_ff", "dim_ff")):
        budgets = make_budgets(config, (unit,), {key: wanted}, "per-layer", multiple_of={key: multiple})
        clamped = {budget.keys[0][0]: budget.target for budget in budgets if budget.target < budget.asked}
        short = short_layers(config.layers, key, wanted, multiple)
        assert {index: most for index, most in short.items() if most is not None} == clamped
        absent = {index for index in range(config.num_layers) if (index, unit) not in unit_sizes(config, (unit,))}
        assert {index for index, most in short.items() if most is None} == absent
        assert all(str(index) in short_message(key, wanted, short) for index in list(short)[:4])


def test_sizes_that_are_planned_follow_multiples_layer_by_layer() -> None:
    config = ModelConfig.from_dict(MODEL | {"layers": UNEVEN})
    (budget, *_) = budgets = make_budgets(config, ("dim_ff",), {"dim_ff": 16}, "per-layer", multiple_of={"dim_ff": 8})
    cut = left(config, fill_all(budgets, scores(config, ("dim_ff",))))
    after = Left.of(config).planned(("dim_ff",), {"dim_ff": 16}, {"dim_ff": 8})
    assert after.parameters == cut.parameters()
    assert [layer.dim_ff for layer in cut.layers] == [16, 16, 0]
    assert after.config.layers == tuple(type(x)(x.heads, x.dim_head, x.dim_ff) for x in cut.layers)
    assert budget.asked == 16


@pytest.mark.parametrize(
    ("units", "target", "expected"),
    [
        (("block",), {"num_layers": 9}, (9.0, 3.0)),
        (("layer",), {"num_attention": 2, "num_feed_forward": 9}, (2.0, 2.0, 9.0, 3.0)),
        (("head",), {"num_heads": 9}, (27.0, 12.0)),
        (("dim_ff",), {"parameters": 10**9}, (10.0**9, float(tiny_config().parameters()))),
    ],
)
def test_counts_and_sizes_over_the_model_are_held_to_what_there_is(
    units: tuple[str, ...], target: dict[str, int], expected: tuple[float, ...]
) -> None:
    budgets: tuple[Budget, ...] = make_budgets(tiny_config(), units, target, "global")
    assert tuple(size for budget in budgets for size in (budget.asked, budget.target)) == expected
    masks = fill_all(budgets, scores(tiny_config(), units))
    after = left(tiny_config(), masks)
    assert [budget.measure(after) for budget in budgets] == [budget.target for budget in budgets]


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_gone_altogether_is_no_budget(tied: bool) -> None:
    config = tiny_config(mask_modules=[[True, False]] * 3)
    target = {"num_heads": 2, "dim_ff": 20}
    budgets = make_budgets(config, ("head", "dim_ff"), target, "global", tied)
    assert [budget.name for budget in budgets] == ["dim_ff"]
    for wanted in ({"num_heads": 2}, {"parameters": 20_000}, {"sparsity": 0.5}):
        with pytest.raises(PassError, match="the model has no head left that this pass could cut"):
            make_budgets(config, ("head",), wanted, "global")


def test_a_second_pruning_names_the_layer_that_has_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = uneven_plan(score("head", {"num_heads": 2}, budget="per-layer"), EMIT)
    path = write(tmp_path, content)
    before, sys.argv = sys.argv, ["sprunec", "run", str(path), "--out", str(tmp_path / "out")]
    try:
        with pytest.raises(SystemExit) as stop:
            main()
    finally:
        sys.argv = before
    printed = capsys.readouterr()
    report = read_report(tmp_path / "out")
    assert (stop.value.code, report["status"]) == (0, "done")
    assert asked(report) == [(f"num_heads layer {i}", 2, n, n) for i, n in enumerate([2, 1, 2])]
    assert all(row["settled"] for row in report["budgets"])
    said = "not every layer has 2 heads: layer 1 keeps 1"
    assert notes(report) == [said]
    assert printed.err.count(said) == 2  # the plan's warning, the pass's note
    assert "num_heads layer 1: asked 2, got 1" in printed.out
    assert "layer 0: asked" not in printed.out
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<td class="w">num_heads layer 1</td><td class="n">2</td><td class="n">1</td><td class="n">-1</td>' in page
    assert [error.message for error in validator("report").iter_errors(report)] == []


def test_gates_settle_on_what_a_layer_can_keep(tmp_path: Path) -> None:
    cut = mask_pass("dim_ff", {"dim_ff": 16}, steps=60, budget="per-layer", ramp=0.3)
    report = execute(uneven_plan(cut, EMIT, evaluate={"tokens": 100}), tmp_path)
    assert asked(report) == [
        ("dim_ff layer 0", 16, 16, 16),
        ("dim_ff layer 1", 16, 16, 16),
        ("dim_ff layer 2", 16, 7, 7),
    ]
    last = report["budgets"][2]
    assert last["settled"]
    assert last["distance"] == pytest.approx(abs(last["expected"] - 7))
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert [row["target"] for row in events[-1]["budgets"]] == [16, 16, 7]
    assert report["status"] == ("done" if all(row["settled"] for row in report["budgets"]) else "target-missed")


def test_multiples_that_round_a_layer_down_are_told(tmp_path: Path) -> None:
    cut = score("dim_ff", {"dim_ff": 16}, budget="per-layer", multiple_of={"dim_ff": 8})
    report = execute(uneven_plan(cut, EMIT), tmp_path)
    assert [row[1:] for row in asked(report)] == [(16, 16, 16), (16, 16, 16), (16, 0, 0)]
    assert notes(report) == ["not every layer has 16 feed-forward dims: layer 2 keeps none"]
    assert report["kept"]["feed_forward"]["2"] is None


@pytest.mark.parametrize(
    ("unit", "target", "row", "note"),
    [
        ("block", {"num_layers": 3}, ("num_layers", 3, 2, 2), "num_layers: 3 asked for, 2 can be kept"),
        ("head", {"num_heads": 4}, ("num_heads", 8, 5, 5), "num_heads: 8 asked for, 5 can be kept"),
        (
            "dim_ff",
            {"parameters": 40_000},
            ("all", 40_000, 19_080, 19_080),
            "all: 40,000 asked for, 19,080 can be kept",
        ),
    ],
)
def test_what_only_the_run_can_know_is_told_by_it(
    tmp_path: Path, unit: str, target: dict[str, int], row: tuple[Any, ...], note: str
) -> None:
    heads, dims = torch.zeros(3, 8), torch.ones(3, 48)
    heads[0, 1:3], heads[2, 3:6], dims[1] = 1, 1, 0
    torch.save({"heads_z": heads, "dimff_z": dims}, tmp_path / "cut.pt")
    cut = {"pass": "load-mask", "path": "cut.pt"}
    report = execute(plan(TRAIN, cut, score(unit, target), EMIT), tmp_path)
    assert asked(report)[-1] == row
    assert note in notes(report)
    assert report["status"] == "done"


def test_a_size_that_cutting_everything_does_not_reach_ends_before_any_training(tmp_path: Path) -> None:
    torch.save({"heads_z": torch.eye(3, 8)}, tmp_path / "cut.pt")
    passes = (TRAIN, {"pass": "load-mask", "path": "cut.pt"}, mask_pass("head", {"parameters": 12_000}), EMIT)
    with pytest.raises(PassError, match="12,000 is below what is left when every unit of this pass is cut"):
        execute(plan(*passes), tmp_path)
    trained = [json.loads(line)["node"] for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert not [node for node in trained if "train-mask" in node]
