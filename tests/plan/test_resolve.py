"""A new target on gates that are there: the masks are not trained again, and the run says how far the gates are off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sprunec
from tests.helpers.small_plans import EMIT, TRAIN, artifact, execute, mask_pass, plan, read_report, write

STEPS = 80


def content(target: dict[str, Any], **options: Any) -> dict[str, Any]:
    masks = mask_pass("head", target, STEPS, budget="per-layer", learning_rate=0.001, **options)
    return plan(TRAIN, masks, {"pass": "finetune", "steps": 2}, EMIT)


def by_pass(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["pass"]: entry for entry in report["passes"]}


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("solved")
    assert execute(content({"num_heads": 4}), directory)["status"] == "done"
    return directory


def test_another_target_is_cut_by_the_same_gates_without_training_them_again(solved: Path) -> None:
    before = by_pass(read_report(solved / "out"))
    report = execute(content({"num_heads": 2}, gates_for={"num_heads": 4}), solved)
    after = by_pass(report)
    assert after["train-mask"]["cached"] and after["train-mask"]["digest"] == before["train-mask"]["digest"]
    assert not after["binarize"]["cached"] and not after["finetune"]["cached"]
    assert {len(heads) for heads in report["kept"]["attention"].values()} == {2}
    first, second = after["binarize"]["metrics"]["notes"]
    assert first == "cut to another target by the gates learned for num_heads -> 4 (per-layer)"
    assert "the gates expect " in second and second.endswith("the target is 2; not settled")
    assert report["status"] == "target-missed"
    for row in report["budgets"]:
        assert (row["target"], row["got"], row["settled"]) == (2.0, 2.0, False)
        assert abs(row["expected"] - 4.0) < 0.5


def test_the_heads_of_the_smaller_target_are_the_best_of_the_gates(solved: Path) -> None:
    from sprunec.masks.mask_tensors import load_scores

    report = execute(content({"num_heads": 2}, gates_for={"num_heads": 4}), solved)
    scores = load_scores(artifact(solved / "out", "train-mask"))
    for layer, heads in report["kept"]["attention"].items():
        assert set(heads) == set(scores[int(layer), "head"].topk(2).indices.tolist())


def test_the_target_itself_is_settled_whichever_way_it_is_written(solved: Path) -> None:
    plain = execute(content({"num_heads": 4}), solved)
    report = execute(content({"num_heads": 4}, gates_for={"num_heads": 4}), solved)
    assert report["status"] == "done"
    assert report["kept"] == plain["kept"]
    assert report["budgets"] == plain["budgets"]


def test_without_an_earlier_run_the_gates_are_trained_for_their_own_target(solved: Path, tmp_path: Path) -> None:
    """So one plan is one run, whatever the folder held before."""
    there, here = ({}, {})
    for directory, found in ((solved, there), (tmp_path, here)):
        graph = sprunec.lower(
            sprunec.read_plan(write(directory, content({"num_heads": 2}, gates_for={"num_heads": 4})))
        )
        found |= {node.name: node.digest for node in graph.nodes}
    assert there == here
    plain = sprunec.lower(sprunec.read_plan(write(tmp_path, content({"num_heads": 2}))))
    assert [node.digest for node in plain.nodes if node.pass_ == "train-mask"] != [
        digest for name, digest in here.items() if "train-mask" in name
    ]
