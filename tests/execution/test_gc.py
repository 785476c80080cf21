"""What no plan refers to is removed, after saying how much; what a plan needs stays, and nobody is disturbed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import sprunec
from sprunec.cli import main
from sprunec.execution.progress import Watcher
from sprunec.plan.schema import validator
from tests.helpers.small_plans import EMIT, TRAIN, artifact, execute, mask_pass, plan, read_report, write

FIRST = plan(TRAIN, mask_pass("head", {"num_heads": 3}), EMIT)
SECOND = plan(TRAIN, mask_pass("head", {"num_heads": 2}), EMIT)


def gc(out: Path, *options: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["sprunec", "gc", str(out), *options])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of a plan that was changed and run again."""
    directory = tmp_path_factory.mktemp("twice")
    execute(FIRST, directory)
    execute(SECOND, directory)
    return directory


@pytest.fixture
def copy(twice: Path, tmp_path: Path) -> Path:
    return shutil.copytree(twice, tmp_path / "copy")


def artifacts(out: Path) -> set[str]:
    return {path.parent.name for path in out.glob("store/*/manifest.json")}


def needed(out: Path) -> set[str]:
    return {entry["digest"] for entry in read_report(out)["passes"]}


def document(out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    capsys.readouterr()
    assert gc(out, "--json", *options, monkeypatch=monkeypatch) == 0
    found = json.loads(capsys.readouterr().out)
    validator("gc").validate(found)
    return found


def test_what_only_an_earlier_plan_needed_goes(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy / "out"
    before = artifacts(out)
    assert before > needed(out)
    foretold = document(out, monkeypatch, capsys, "--dry-run")
    assert artifacts(out) == before and not foretold["removed"]
    used = sum(path.lstat().st_size for path in out.rglob("*") if path.is_file())
    done = document(out, monkeypatch, capsys)
    assert done == foretold | {"removed": True} and done["bytes"] > 100_000
    freed = used - sum(path.lstat().st_size for path in out.rglob("*") if path.is_file())
    assert freed >= done["bytes"] > 0.5 * freed  # a second name of what stays frees nothing
    assert artifacts(out) == needed(out)
    assert all(entry["cached"] for entry in execute(SECOND, copy)["passes"])
    assert document(out, monkeypatch, capsys)["entries"] == []


def test_the_plans_that_share_a_folder_keep_what_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(FIRST, tmp_path)
    execute(SECOND | {"name": "another"}, tmp_path)
    assert document(tmp_path / "out", monkeypatch, capsys)["entries"] == []
    assert all(entry["cached"] for entry in execute(FIRST, tmp_path)["passes"])


def test_what_a_stopped_run_goes_on_from_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = plan({"pass": "train", "steps": 6, "checkpoint_every": 2}, EMIT)

    class Stops(Watcher):
        def step(self, event: Any) -> None:
            if event["step"] == 5:
                raise KeyboardInterrupt

    graph = sprunec.lower(sprunec.read_plan(write(tmp_path, content)))
    with pytest.raises(KeyboardInterrupt):
        sprunec.execute(graph, tmp_path / "out", Stops())
    saves = list(tmp_path.glob("out/store/partial-*/*.pt"))
    assert document(tmp_path / "out", monkeypatch, capsys)["entries"] == []
    assert saves and all(path.exists() for path in saves)


def test_what_stopped_and_damaged_runs_left_goes(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, store = copy / "out", copy / "out/store"
    gc(out, monkeypatch=monkeypatch)
    digest = artifact(out, "train").name
    outside = copy / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    for name in ("damaged-x1", "writing-x2", f"partial-{'0' * 64}", f"partial-{digest}"):
        (store / name).mkdir()
        (store / name / "a").write_bytes(b"1234")
    (store / f"events-{'1' * 64}.jsonl").write_bytes(b"1234")
    (store / f"partial-{'2' * 64}").symlink_to(outside)
    (out / ".report.json.123").write_bytes(b"1234")
    (out / "mine.txt").write_text("what the user put there")
    found = document(out, monkeypatch, capsys)
    assert {Path(entry["path"]).name: entry["reason"] for entry in found["entries"]} == {
        "damaged-x1": "was found damaged",
        "writing-x2": "left behind by a run that was stopped",
        f"partial-{'0' * 64}": "no plan refers to it",
        f"partial-{'2' * 64}": "no plan refers to it",
        f"partial-{digest}": "saves of a pass that is done",
        f"events-{'1' * 64}.jsonl": "no plan refers to it",
        ".report.json.123": "left behind by a run that was stopped",
    }
    assert not any(os.path.lexists(entry["path"]) for entry in found["entries"])
    assert (outside / "mine").exists() and (out / "mine.txt").exists()
    assert all(entry["cached"] for entry in execute(SECOND, copy)["passes"])


def test_nothing_goes_while_a_run_is_there(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []

    class Collects(Watcher):
        def node_started(self, index: int, total: int, name: str) -> None:
            codes.append(gc(copy / "out", monkeypatch=monkeypatch))

    before = artifacts(copy / "out")
    sprunec.execute(sprunec.lower(sprunec.read_plan(write(copy, SECOND))), copy / "out", Collects())
    assert set(codes) == {1}
    assert "is in use by another run, process" in capsys.readouterr().err
    assert artifacts(copy / "out") == before


def test_a_damaged_reference_or_no_run_at_all_is_an_error_and_removes_nothing(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = artifacts(copy / "out")
    (reference,) = (copy / "out/store").glob("plan-*.json")
    reference.write_text(reference.read_text().replace('"plan"', '"plam"'))
    assert gc(copy / "out", monkeypatch=monkeypatch) == 1
    assert "is damaged: it said what a plan refers to; run the plan again" in capsys.readouterr().err
    assert artifacts(copy / "out") == before
    execute(SECOND, copy)
    assert gc(copy / "out", monkeypatch=monkeypatch) == 0
    for place in (copy, copy / "none"):
        assert gc(place, monkeypatch=monkeypatch) == 3
        assert not (place / ".lock").exists()


def test_it_says_how_much_before_it_removes(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gc(copy / "out", monkeypatch=monkeypatch) == 0
    told = capsys.readouterr().out
    assert "items are removed" in told and "no plan refers to it" in told
    assert gc(copy / "out", monkeypatch=monkeypatch) == 0
    assert "nothing to remove" in capsys.readouterr().out
