"""What layers keep comes in multiples where that is asked for, and sizes still end within one smallest unit."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sprunec.families.base_config import unit_cost, unit_sizes
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.masks.budgets import fill_all, make_budgets
from sprunec.masks.granularity import groups, remainder
from sprunec.plan.targets import removable
from sprunec.units import Key
from tests.conftest import tiny_config
from tests.helpers.small_plans import EMIT, TRAIN, execute, mask_pass, plan, read_report
from tests.masks.test_budgets import left, ragged, scores

JOINT = ("layer", "head", "dim_ff")


def wide(seed: int) -> ModelConfig:
    """Layers of unlike widths, as earlier passes leave them."""
    draw = random.Random(seed)
    layers: list[dict[str, Any]] = [
        {"heads": draw.randint(2, 4), "dim_head": draw.choice([3, 6]), "dim_ff": draw.randint(17, 40)}
        for _ in range(draw.randint(2, 5))
    ]
    for layer in layers:
        layer |= {"kept_heads": list(range(layer["heads"]))} if layer["heads"] < 4 else {}
    return tiny_config(num_layers=len(layers), layers=layers)


def counts(masks: dict[Key, Tensor], unit: str) -> list[int]:
    return [int(mask.sum()) for key, mask in masks.items() if key[1] == unit]


def test_groups_are_of_like_scores_and_leave_the_worst_out() -> None:
    values = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    assert groups((0, "dim_ff"), values, 2) == [(4.5, (0, "dim_ff"), (0, 2)), (2.5, (0, "dim_ff"), (4, 3))]
    assert [places for _, _, places in groups((0, "dim_ff"), values, 2, worst_first=True)] == [(3, 4), (2, 0)]
    assert remainder(values, 2).tolist() == [1]
    assert remainder(values, 1).tolist() == []


@pytest.mark.parametrize("units", [("dim_ff",), ("head", "dim_ff"), JOINT], ids=repr)
@pytest.mark.parametrize("multiple", [1, 8])
def test_parameters_land_within_one_unit_on_ten_models(units: tuple[str, ...], multiple: int) -> None:
    for seed in range(10):
        config = wide(seed)
        smallest = min(unit_cost(config, *k) * (multiple if k[1] == "dim_ff" else 1) for k in unit_sizes(config, units))
        target = config.parameters() - round(random.Random(seed).uniform(0.3, 0.7) * removable(config, units))
        (budget,) = make_budgets(config, units, {"parameters": target}, "global", multiple_of={"dim_ff": multiple})
        masks = budget.fill(scores(config, units, seed), {})
        got = left(config, masks).parameters()
        assert target - smallest < got <= target, (seed, target, got)
        assert budget.measure(left(config, masks)) == got
        assert all(count % multiple == 0 for count in counts(masks, "dim_ff"))


@pytest.mark.parametrize("budget", ["per-layer", "global"])
@pytest.mark.parametrize("seed", range(5))
def test_counts_are_multiples_and_met_where_there_are_enough(budget: str, seed: int) -> None:
    config = ragged(seed)
    units, target = ("head", "dim_ff"), {"num_heads": 2, "dim_ff": 4}
    budgets = make_budgets(config, units, target, budget, multiple_of={"num_heads": 2, "dim_ff": 4})
    masks = fill_all(budgets, scores(config, units, seed))
    assert all(count % 2 == 0 for count in counts(masks, "head"))
    assert all(count % 4 == 0 for count in counts(masks, "dim_ff"))
    assert [each.target for each in budgets] == [sum(int(masks[key].sum()) for key in each.keys) for each in budgets]
    assert left(config, masks).layers[0].dim_ff in ((4,) if budget == "per-layer" else (0, 4))


def test_groups_go_where_their_mean_is_best() -> None:
    config = tiny_config()
    given = {(0, "head"): torch.tensor([9.0, 1, 1, 1]), (1, "head"): torch.tensor([6.0, 6, 0, 0])}
    given[(2, "head")] = torch.tensor([4.0, 4, 4, 4])
    (budget,) = make_budgets(config, ("head",), {"num_heads": 2}, "global", multiple_of={"num_heads": 2})
    masks = budget.fill(given, {})
    assert [mask.tolist() for mask in masks.values()] == [[True, True, False, False]] * 2 + [[True, True, False, False]]


def test_tied_heads_are_multiples_and_the_same_in_all_layers() -> None:
    given = {(index, "head"): torch.tensor([1.0, 4, 3, 2]) for index in range(3)}
    (budget,) = make_budgets(tiny_config(), ("head",), {"num_heads": 2}, "per-layer", True, {"num_heads": 2})
    assert [mask.tolist() for mask in budget.fill(given, {}).values()] == [[False, True, True, False]] * 3


@pytest.mark.parametrize("target", [{"sparsity": 0.4}, {"dim_ff": 20}], ids=repr)
def test_a_run_keeps_fours_that_sparsify_takes(tmp_path: Path, target: dict[str, Any]) -> None:
    cut = {"pass": "score-mask", "criterion": "magnitude", "unit": "dim_ff", "target": target, "budget": "global"}
    sparse = {"pass": "sparsify", "pattern": "m4n2_1d", "tensors": ["w_out"]}
    report = execute(plan(TRAIN, cut | {"multiple_of": {"dim_ff": 4}}, sparse, EMIT), tmp_path)
    widths = list(report["kept"]["feed_forward"].values())
    assert report["status"] == "done"
    assert all(width is None or width % 4 == 0 for width in widths)
    assert len(set(widths)) > 1
    (row,) = report["budgets"]
    assert 0 <= row["target"] - row["got"] < 4 * 3 * 32


def test_multiples_change_the_masks_digest_and_not_that_of_the_gates(tmp_path: Path) -> None:
    def digests(**options: Any) -> dict[str, str]:
        execute(plan(TRAIN, mask_pass("dim_ff", {"dim_ff": 24}, **options)), tmp_path)
        return {entry["pass"]: entry["digest"] for entry in read_report(tmp_path / "out")["passes"]}

    without, eights, ones = digests(), digests(multiple_of={"dim_ff": 8}), digests(multiple_of={})
    assert without["train-mask"] == eights["train-mask"]
    assert without["binarize"] != eights["binarize"]
    assert without == ones
    assert json.loads((tmp_path / "out" / "report.json").read_text())["budgets"][0]["distance"] >= 0
