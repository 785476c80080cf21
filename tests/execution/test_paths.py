"""What would end a run after hours, or cost somebody a file, is refused before the run begins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sprunec.engines.checkpoints import Saves
from sprunec.errors import InputError
from sprunec.execution.paths import LONGEST_NAME
from tests.helpers.small_plans import EMIT, TRAIN, execute, plan

SCORE = {"pass": "score-mask", "criterion": "random", "unit": "head", "target": {"num_heads": 3}}


def scored(save_mask: str, **changes: Any) -> dict[str, Any]:
    return plan(TRAIN, SCORE | {"save_mask": save_mask}, EMIT, **changes)


def pipe(here: Path) -> None:
    os.mkfifo(here / "h.pt")


def folder_for_the_note(here: Path) -> None:
    (here / "h.pt.json").mkdir()


def folder_for_the_checkpoint(here: Path) -> None:
    (here / "out" / "whole.pt").mkdir(parents=True)


def link_to_a_pipe(here: Path) -> None:
    os.mkfifo(here / "pipe")
    (here / "h.pt").symlink_to(here / "pipe")


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (pipe, r"h\.pt: error: is no plain file, and would be replaced by one; name another file"),
        (link_to_a_pipe, r"h\.pt: error: is no plain file"),
        (folder_for_the_note, r"h\.pt\.json: error: is a folder; name another file"),
        (folder_for_the_checkpoint, r"whole\.pt: error: is a folder, and the run puts a file there; choose another"),
    ],
)
def test_what_stands_in_the_way_of_a_file_is_named(before: Any, words: str, tmp_path: Path) -> None:
    before(tmp_path)
    with pytest.raises(InputError, match=words):
        execute(scored("h.pt", outputs={"checkpoint": "whole.pt"}), tmp_path)
    assert not (tmp_path / "out" / "store").exists()


def test_a_name_that_leaves_no_room_for_what_is_written_aside(tmp_path: Path) -> None:
    name = "h" * LONGEST_NAME
    with pytest.raises(InputError, match="has a name of more than 200 bytes"):
        execute(scored(f"{name}.pt"), tmp_path)
    assert not (tmp_path / "out").exists()
    execute(scored(f"{name[:-8]}.pt"), tmp_path)
    assert (tmp_path / f"{name[:-8]}.pt.json").is_file()


def test_a_link_is_looked_at_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is replaced there, so what counts is the folder that it is in, not the one that it leads to."""
    for name in ("closed", "open"):
        (tmp_path / name).mkdir()
    (tmp_path / "open" / "h.pt").write_text("mine")
    (tmp_path / "closed" / "h.pt").symlink_to(tmp_path / "open" / "h.pt")
    real = os.access
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: Path(path).name != "closed" and real(path, mode))
        with pytest.raises(InputError, match=r"closed/h\.pt: error: cannot be written: .*closed is no folder that may"):
            execute(scored("closed/h.pt"), tmp_path)
    execute(scored("closed/h.pt"), tmp_path)
    assert not (tmp_path / "closed" / "h.pt").is_symlink()
    assert (tmp_path / "open" / "h.pt").read_text() == "mine"


@pytest.mark.parametrize("name", ["model", "masks", "recipe.json"])
def test_a_folder_of_the_users_own_is_no_place_for_a_run(name: str, tmp_path: Path) -> None:
    """As with `--out .` in a project that has a `model` folder."""
    (tmp_path / "out" / name).mkdir(parents=True)
    (tmp_path / "out" / name / "precious.py").write_text("mine")
    with pytest.raises(InputError, match=f"{name}: error: would be replaced, and no run has worked in this folder"):
        execute(scored("h.pt"), tmp_path)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == [name, "precious.py"]


def test_a_save_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "save.writing").symlink_to(tmp_path / "mine")
    saves = Saves(tmp_path / "partial", 1, lambda: False)
    saves.after_step(1, 2, lambda: {"step": 1})
    assert (tmp_path / "mine").read_text() == "precious"
    assert saves.latest() == {"step": 1}
