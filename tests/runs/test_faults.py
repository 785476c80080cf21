"""A disk that fails at any call of a run: one clear error, a store that verifies, and a next run that ends the same."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from sprunec.cli import main
from sprunec.errors import REMEDIES
from tests.helpers.faults import ERRORS, Disk, Site, is_named, watched
from tests.helpers.small_plans import EMIT, mask_pass, plan, write
from tests.runs.test_damage import contents, verify

PLAN = plan(
    {"pass": "train", "steps": 3, "checkpoint_every": 1},
    mask_pass("head", {"num_heads": 3}, steps=5, checkpoint_every=2, budget="global", save_mask="out/heads.pt"),
    EMIT,
    outputs={"checkpoint": "whole.pt"},
    data={"source": "text", "path": "text.txt", "max_length": 34, "batch_size": 4},
)


def run(directory: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of `sprunec run`; anything but an exit is a traceback."""
    monkeypatch.setattr("sys.argv", ["sprunec", "run", str(directory / "plan.json"), "--out", str(directory / "out")])
    with watched(disk), pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Site], list[Site]]:
    """A folder with a finished run; where it called the disk when it did the work, and when all was done."""
    directory = tmp_path_factory.mktemp("whole")
    (directory / "text.txt").write_text("a text that is long enough to train on, and some more of it. " * 60)
    write(directory, PLAN)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for _ in range(2):
            disk = Disk(directory / "out")
            assert run(directory, disk, patch) in (0, 4)
            found.append(list(disk.sites))
    return directory, found[0], found[1]


def fails(
    whole: Path, copy: Path, site: Site, error: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = Disk(copy / "out", (site, error))
    capsys.readouterr()
    code, told = run(copy, disk, monkeypatch), capsys.readouterr().err
    assert disk.failed is not None, site
    assert code in (1, 3), (code, site, told)
    assert "Traceback" not in told and os.strerror(error) in told and REMEDIES[error] in told, (site, told)
    assert is_named(told, disk.failed), (site, disk.failed, told)
    assert error != errno.ENOSPC or "bytes are free there" in told, (site, told)
    sound(copy / "out")
    assert run(copy, Disk(copy / "out"), monkeypatch) in (0, 4)
    assert contents(copy / "out") == contents(whole / "out"), site
    verify(copy / "out")


def sound(out: Path) -> None:
    """Nothing in the store looks finished and is not."""
    from sprunec.execution.manifest import read_manifest
    from sprunec.file_digests import file_digest

    for place in (path.parent for path in out.glob("store/*/manifest.json")):
        manifest = read_manifest(place, place.name)
        if len(place.name) == 64:
            assert manifest is not None
            assert all(file_digest(place / name) == digest for name, digest in manifest["files"].items())


def sites_in_turn(whole: tuple[Path, list[Site], list[Site]], every: int) -> list[tuple[bool, Site, int]]:
    found = [(False, site) for site in whole[1]] + [(True, site) for site in whole[2]]
    return [(done, site, ERRORS[i % 3]) for i, (done, site) in enumerate(found)][::every]


@pytest.mark.parametrize("part", range(3))
def test_a_failing_call_is_one_clear_error_and_costs_nothing(
    part: int,
    whole: tuple[Path, list[Site], list[Site]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sample = sites_in_turn(whole, 131)[part::3]
    for number, (done, site, error) in enumerate(sample):
        fails(whole[0], start(whole[0], tmp_path / str(number), done), site, error, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_every_failing_call_is_one_clear_error_and_costs_nothing(
    error: int,
    whole: tuple[Path, list[Site], list[Site]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sites, wrong = sites_in_turn(whole, 1), []
    for number, (done, site, _) in enumerate(sites):
        copy = start(whole[0], tmp_path / str(number), done)
        try:
            fails(whole[0], copy, site, error, monkeypatch, capsys)
        except AssertionError as found:  # all that is wrong, not only the first
            wrong.append(f"{done} {site}: {found}")
        shutil.rmtree(copy)
    print(f"{len(sites)} calls failed with {errno.errorcode[error]}")
    assert not wrong, "\n".join(wrong)


def start(whole: Path, copy: Path, done: bool) -> Path:
    """The plan and its text, and OUT where all is done already."""
    kept = None if done else shutil.ignore_patterns("out")
    shutil.copytree(whole, copy, ignore=kept, symlinks=True)
    return copy
