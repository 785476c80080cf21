"""Damages come back as they were saved, and whatever else a file holds is refused with the entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sprunec.errors import InputError
from sprunec.masks.search.damages_file import FILE, Damages, load_damages, save_damages
from sprunec.plan.search.choices import Choice

SCORES = {(0, "dim_ff"): torch.tensor([1.0, 2.0]), (0, "kv_group"): torch.tensor([0.5])}
CHOICES = (
    (Choice(0, "attention", {"kv_group": 2, "head": 6}), 0.0),
    (Choice(0, "attention", {}), 1 / 3),
    (Choice(0, "feed_forward", {"dim_ff": 8}), 1.0),
    (Choice(0, "block", {}), 2.5),
)


def test_damages_come_back(tmp_path: Path) -> None:
    save_damages(tmp_path, Damages("kl", 7, SCORES, CHOICES))
    found = load_damages(tmp_path)
    assert (found.kind, found.tokens, found.choices) == ("kl", 7, CHOICES)
    assert found.scores.keys() == SCORES.keys() and all(torch.equal(found.scores[key], SCORES[key]) for key in SCORES)


def test_changes_may_be_for_the_better(tmp_path: Path) -> None:
    changes = ((CHOICES[0][0], 0.0), (CHOICES[2][0], -0.25))
    save_damages(tmp_path, Damages("exchange", 7, SCORES, changes))
    assert load_damages(tmp_path).choices == changes


def entry(**changes: Any) -> dict[str, Any]:
    return {"layer": 0, "sublayer": "attention", "kept": {"head": 1}, "damage": 0.5} | changes


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([entry(), {"layer": 0}], "/choices/1 lacks one of"),
        ([entry(damage=1)], "/choices/0 lacks"),
        ([entry(damage=-0.5)], "has the damage -0.5"),
        ([entry(damage=float("nan"))], "has the damage nan"),
        ([entry(layer=-1)], "is no choice"),
        ([entry(sublayer="head")], "is no choice"),
        ([entry(kept={"dim_ff": 1})], "is no choice"),
        ([entry(kept={"head": 0})], "is no choice"),
        ([entry(kept={"head": True})], "is no choice"),
        ([entry(more=1)], "is no choice"),
        ([entry(), entry(damage=0.25)], "two damages"),
        ({}, "is not a list of choices"),
    ],
)
def test_what_is_no_list_of_damages_is_refused(rows: Any, words: str, tmp_path: Path) -> None:
    save_damages(tmp_path, Damages("kl", 7, SCORES, ()))
    (tmp_path / FILE).write_text(json.dumps({"damage": "fisher", "tokens": 7, "choices": rows}))
    with pytest.raises(InputError, match=words) as caught:
        load_damages(tmp_path)
    assert FILE in str(caught.value)


@pytest.mark.parametrize("changes", [{"damage": "loss"}, {"tokens": 0}, {"more": 1}])
def test_what_is_said_of_all_is_held_to(changes: dict[str, Any], tmp_path: Path) -> None:
    save_damages(tmp_path, Damages("kl", 7, SCORES, ()))
    (tmp_path / FILE).write_text(json.dumps({"damage": "fisher", "tokens": 7, "choices": []} | changes))
    with pytest.raises(InputError, match="is not a list of choices"):
        load_damages(tmp_path)
