"""Refitted weights through whole runs: the loss after a cut falls, and masked and small model still agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sprunec import execute, lower, read_plan
from tests.runs import EMIT, plan, write

TRAIN = {"pass": "train", "steps": 150}
CUT = {"unit": ["head", "dim_ff"], "target": {"sparsity": 0.5}}


def report(folder: Path, *passes: dict[str, Any]) -> Any:
    """All plans share a folder, so the dense model is trained once."""
    content = plan(TRAIN, *passes, EMIT, training={"learning_rate": 0.02}, evaluate={"tokens": 4000})
    return execute(lower(read_plan(write(folder, content))), folder / "out").data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compensated")


@pytest.mark.parametrize("criterion", ["taylor", "activation", "reconstruction"])
def test_refitting_lowers_the_loss_of_a_cut_and_stays_exact(folder: Path, criterion: str) -> None:
    cut = {"pass": "score-mask", "criterion": criterion, **CUT}
    plain, refitted = report(folder, cut), report(folder, {**cut, "compensate": "least-squares"})
    assert refitted["kept"] == plain["kept"]
    losses = [found["models"]["small"]["loss"] for found in (plain, refitted)]
    dense = plain["models"]["dense"]["loss"]
    assert losses[1] - dense < 0.85 * (losses[0] - dense)
    assert refitted["comparison"]["max_abs_difference"] < 1e-9
    assert refitted["models"]["masked"]["loss"] == pytest.approx(losses[1], abs=1e-5)


def test_what_is_left_after_learned_gates_is_refitted_to_what_they_let_through(folder: Path) -> None:
    cut = {"pass": "train-mask", "steps": 60, "budget": "global", **CUT}
    plain, refitted = report(folder, cut), report(folder, {**cut, "compensate": "least-squares"})
    assert refitted["kept"] == plain["kept"]
    assert refitted["models"]["small"]["loss"] < plain["models"]["small"]["loss"] + 0.02
    assert refitted["comparison"]["max_abs_difference"] < 1e-9


def test_a_sublayer_that_goes_leaves_nothing_to_refit(folder: Path) -> None:
    cut = {"pass": "score-mask", "criterion": "activation", "unit": "attention", "target": {"num_attention": 2}}
    found = report(folder, {**cut, "compensate": "least-squares"})
    assert [p["metrics"]["refitted"] for p in found["passes"] if p["pass"] == "compensate"] == [0]
    assert sum(heads is None for heads in found["kept"]["attention"].values()) == 1
