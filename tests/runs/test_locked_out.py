"""One run at a time in a folder, whatever became of the one before."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
from pathlib import Path

import pytest

from sprunec.errors import InputError
from sprunec.execution.lock import alone
from tests.helpers.small_plans import EMIT, plan, read_report, write
from tests.runs.test_resume import Followed


def test_a_second_run_is_told_who_holds_the_folder_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    write(tmp_path, plan({"pass": "train", "steps": 20_000}, EMIT))
    first = Followed(tmp_path)
    first.until(3)  # data, load, train: it works
    second = Followed(tmp_path)
    try:
        _, told = second.process.communicate(timeout=60)
        assert first.process.poll() is None
    finally:
        second.process.kill()
        first.stop(signal.SIGKILL)
    assert second.process.returncode == 1
    assert f"out is in use by another run, process {first.process.pid}; wait for it, or give another --out" in told
    assert "Traceback" not in told
    write(tmp_path, plan({"pass": "train", "steps": 2}, EMIT))
    third = Followed(tmp_path)
    assert third.stop(0) == 0
    assert read_report(tmp_path / "out")["status"] == "done"


def test_what_a_run_has_started_does_not_hold_the_folder_for_it(tmp_path: Path) -> None:
    """A child that outlives a killed run, such as the one that opens a form."""
    with alone(tmp_path):
        child = subprocess.Popen(["sleep", "30"])
    with alone(tmp_path):
        assert child.poll() is None
    child.kill()
    child.wait()


def test_a_disk_without_locks_is_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    words = r"cannot be locked, .*: No locks available; give a folder on another disk"
    with pytest.raises(InputError, match=words), alone(tmp_path):
        pytest.fail("without a lock")
