"""Names that no file can have, wherever a user gives a path: what is named is not there, as with any other name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sprunec.cli import app
from sprunec.compiler.opened import open_model
from sprunec.errors import InputError
from sprunec.plan.plan import check_plan
from sprunec.show.report.runs import open_runs
from tests.helpers.small_plans import MODEL

LONG, NUL = "x" * 300, "a\0b"
NAMES = [LONG, f"{LONG}.gguf", f"{LONG}.json", "d/" * 2500, NUL, f"{NUL}.gguf"]
TEXT = {"source": "text", "path": "a.txt"}
PLACES: dict[str, Any] = {
    "/model/path": lambda name: {"model": {"path": name}},
    "/model/config": lambda name: {"model": {"config": name}},
    "/model/checkpoint": lambda name: {"model": {"config": MODEL, "checkpoint": name}},
    "/data/path": lambda name: {"data": TEXT | {"path": name}},
    "/data/held_out": lambda name: {"data": TEXT | {"held_out": name}},
    "/data/tokenizer": lambda name: {"data": TEXT | {"tokenizer": name}},
    "/training/distillation/teacher": lambda name: {"training": {"distillation": {"teacher": name}}},
    "/passes/0/path": lambda name: {"passes": [{"pass": "load-mask", "path": name}]},
}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: f"{name[:3]!a} {len(name)}")
@pytest.mark.parametrize("place", PLACES)
def test_in_a_plan_they_are_told_where_they_stand(place: str, name: str, tmp_path: Path) -> None:
    content = {"name": "x", "model": {"config": MODEL}, "data": TEXT, "passes": [{"pass": "train", "steps": 1}]}
    (tmp_path / "plan.json").write_text(json.dumps(content | PLACES[place](name)))
    found = check_plan(tmp_path / "plan.json")[1]
    codes = [each.code for each in found if each.pointer == place]
    assert codes in (["missing-file"], ["bad-form"], ["out-of-range"])  # no name has a NUL, or 5,000 characters


@pytest.mark.parametrize("name", [name for name in NAMES if NUL not in name], ids=lambda name: str(len(name)))
@pytest.mark.parametrize("command", ["inspect", "init", "report"])
def test_commands_tell_that_nothing_is_there(command: str, name: str) -> None:
    with pytest.raises(InputError, match="there is no") as told:
        app([command, name], standalone_mode=False)
    assert told.value.exit_code == 3


def test_libraries_may_give_any_name() -> None:
    for opened in (lambda path: open_runs([path]), open_model):
        with pytest.raises(InputError, match="there is no"):
            opened(Path(NUL))
