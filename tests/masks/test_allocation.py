"""Where scores say how many units each layer keeps, gates learn which; where they don't, gates learn both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sprunec
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.masks.budgets import allocated, fill_all, make_budgets
from tests.helpers.causal_lms import GROUPED
from tests.helpers.small_plans import EMIT, TRAIN, execute, mask_pass, plan, write
from tests.masks.test_budgets import scores
from tests.masks.test_multiples import counts, wide

JOINT: dict[str, Any] = {"num_heads": 3, "dim_ff": 20}
UNITS = ["head", "dim_ff"]


@pytest.mark.parametrize("target", [JOINT, {"sparsity": 0.4}], ids=["counts", "size"])
@pytest.mark.parametrize("multiple", [1, 4])
def test_each_layer_keeps_as_many_by_any_scores_as_by_those_that_shared_it_out(
    target: dict[str, Any], multiple: int
) -> None:
    config = wide(3)
    budgets = make_budgets(config, ("head", "dim_ff"), target, "global", multiple_of={"dim_ff": multiple})
    start, learned = scores(config, ("head", "dim_ff"), 1), scores(config, ("head", "dim_ff"), 2)
    free, first = fill_all(budgets, learned), fill_all(budgets, start)
    inside = fill_all(allocated(config, budgets, start), learned)
    for unit in UNITS:
        assert counts(inside, unit) == counts(first, unit) != counts(free, unit)
    assert all(
        torch.equal(inside[key], learned[key] >= learned[key][inside[key]].min()) for key in inside if inside[key].any()
    )
    assert any(not torch.equal(inside[key], first[key]) for key in inside)


def test_each_group_of_a_layer_keeps_as_many_heads_by_any_scores() -> None:
    config = TransformersConfig.from_source({"model_type": "llama", **GROUPED})
    budgets = make_budgets(config, ("head",), {"num_heads": 4}, "global")
    shared = allocated(config, budgets, scores(config, ("head",), 1))
    heads = torch.tensor([0.0, 1, 2, 3, 4, 5])  # the last three are one group's
    masks = fill_all(shared, {budget.keys[0]: heads for budget in shared})
    assert sum(int(mask.sum()) for mask in masks.values()) == 8
    assert all(torch.equal(mask[:3], mask[3:]) for mask in masks.values())


def trained(directory: Path, *passes: dict[str, Any]) -> dict[str, dict[str, int]]:
    """How many heads and dims each layer keeps."""
    report = execute(plan({"pass": "train", "steps": 20}, *passes, EMIT), directory)
    kept = report["kept"]
    return {
        "heads": {layer: len(heads or ()) for layer, heads in kept["attention"].items()},
        "dims": kept["feed_forward"],
    }


def test_a_run_keeps_of_each_layer_what_the_start_of_its_gates_would(tmp_path: Path) -> None:
    quick = {"criterion": "magnitude", "mask_learning_rate": 1.0}
    scored = trained(
        tmp_path / "scored", {"pass": "score-mask", "unit": UNITS, "target": JOINT, "criterion": "magnitude"}
    )
    inside = trained(tmp_path / "inside", mask_pass(UNITS, JOINT, 40, **quick))
    learned = trained(tmp_path / "learned", mask_pass(UNITS, JOINT, 40, allocation="learned", **quick))
    assert inside == scored
    assert learned["heads"] != scored["heads"] and learned["dims"] != scored["dims"]
    for kept in (inside, learned):
        assert (sum(kept["heads"].values()), sum(kept["dims"].values())) == (9, 60)


def test_sublayers_go_where_the_start_says_and_gates_learn_what_is_inside(tmp_path: Path) -> None:
    cut = {"unit": ["layer", *UNITS], "target": {"sparsity": 0.5}, "criterion": "magnitude"}
    scored = trained(tmp_path / "scored", {"pass": "score-mask", **cut})
    inside = trained(tmp_path / "inside", {"pass": "train-mask", "steps": 40, **cut})
    assert inside == scored
    assert 0 in scored["heads"].values() or None in scored["dims"].values()
    assert len({*scored["heads"].values()} - {0}) > 1


@pytest.mark.parametrize(
    ("unit", "target", "options"),
    [
        ("head", {"num_heads": 3}, {"budget": "per-layer"}),
        ("head", {"num_heads": 3}, {"tie_heads": True}),
        ("layer", {"sparsity": 0.3}, {}),
        ("head", {"num_heads": 3}, {"allocation": "learned"}),
    ],
)
def test_where_there_is_nothing_to_share_out_no_digest_knows_of_it(
    unit: Any, target: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    content = plan(TRAIN, mask_pass(unit, target, **options), EMIT)
    graph = sprunec.lower(sprunec.read_plan(write(tmp_path, content)))
    assert not any("allocation" in node.options.document() for node in graph.nodes)
