"""Tests that look into folders of a running command go on when one goes meanwhile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.processes import wait_until


@pytest.fixture
def running() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True) as started:
        yield started


LOOKS: dict[str, Callable[[Path], object]] = {
    "listed": lambda folder: [each.name for each in folder.iterdir()],
    "asked its size": lambda folder: (folder / "step-1").stat().st_size,
    "read": lambda folder: (folder / "step-1").read_text(),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_what_is_not_there_is_not_so_yet(
    look: Callable[[Path], object], running: subprocess.Popen[str], tmp_path: Path
) -> None:
    asked = []

    def is_so() -> object:
        asked.append(1)
        if len(asked) == 3:
            (tmp_path / "partial").mkdir()
            (tmp_path / "partial/step-1").write_text("4")
        return look(tmp_path / "partial")

    wait_until(is_so, running)
    assert len(asked) == 3
