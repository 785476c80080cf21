"""`sprunec report`: runs as their folders have them, and what is said of folders that have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sprunec.cli import app
from sprunec.errors import InputError
from sprunec.show.report.runs import open_runs
from tests.helpers.fake_runs import fake_events, fake_report


def folder(path: Path, **changes: Any) -> Path:
    path.mkdir()
    (path / "report.json").write_text(json.dumps(fake_report() | changes))
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in fake_events()))
    return path


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_runs_of_one_plan_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = open_runs([folder(tmp_path / "a"), folder(tmp_path / "b"), folder(tmp_path / "c", plan="other")])
    assert [run.name for run in runs] == [f"quickstart ({tmp_path / 'a'})", f"quickstart ({tmp_path / 'b'})", "other"]
    assert [run.number for run in runs] == [0, 1, 2] and len(runs[0].events) == 700


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no report.json here"),
        ("{", "this is not the report of a run"),
        ("[1]", "this is not the report of a run"),
        ("{}", "this is not the report of a run"),
        ('{"plan": "a"}', "this is not a report as this release writes them"),
        ("[" * 100_000, "this is not the report of a run"),
    ],
)
def test_a_folder_without_a_report_is_an_error_with_its_name(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        open_runs([tmp_path])
    assert str(tmp_path) in caught.value.diagnostics[0].file and caught.value.diagnostics[0].hint


def test_one_run_is_shown_in_its_folder_and_several_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = folder(tmp_path / "a"), folder(tmp_path / "b")
    assert invoke("a").stdout == "report: a/report.html\n"
    assert "<h1>quickstart</h1>" in (first / "report.html").read_text()
    assert invoke("a", "b").stdout == "report: report.html\n"
    assert "<h1>2 runs</h1>" in (tmp_path / "report.html").read_text()
    assert not (second / "report.html").exists()


def test_markdown_goes_to_stdout_or_into_a_file(tmp_path: Path) -> None:
    out = folder(tmp_path / "a")
    shown = invoke(out, "--markdown")
    assert shown.stdout.startswith("### quickstart: target-missed\n")
    for arguments in (("-o", tmp_path / "x.md"), ("--markdown", "-o", tmp_path / "y")):
        assert invoke(out, *arguments).exit_code == 0
        assert Path(arguments[-1]).read_text() == shown.stdout


def test_a_missing_run_ends_in_exit_code_3_and_writes_nothing(tmp_path: Path) -> None:
    done = invoke(folder(tmp_path / "a"), tmp_path / "b", "-o", tmp_path / "x.html")
    assert isinstance(done.exception, InputError) and done.exception.exit_code == 3
    assert not (tmp_path / "x.html").exists()


DAMAGED = [
    "[1]",
    '{"step": 1, "loss": 2.5}',
    '{"node": "4-train", "step": 1, "budgets": 5}',
    '{"node": "4-train", "step": 1, "budgets": [[]]}',
    '{"node": "4-train", "step": 1, "budgets": [{"expected": 4.5}]}',
    '{"node": "4-train", "step": 1, "kept_percent": [100]}',
    '{"node": "4-train", "step": 1, "kept_percent": {"head": [100]}}',
    '{"node": "4-train", "step": 1, "kept_quantiles": {"head": {"0": 100}}}',
]


@pytest.mark.parametrize("line", DAMAGED)
def test_an_event_of_another_shape_is_an_error_with_its_line(tmp_path: Path, line: str) -> None:
    events = folder(tmp_path / "a") / "events.jsonl"
    whole = events.read_text()
    events.write_text(whole.replace("\n", f"\n{line}\n", 1))
    done = invoke(tmp_path / "a")
    assert isinstance(done.exception, InputError) and done.exception.exit_code == 3
    found = done.exception.diagnostics[0]
    assert (found.place, found.message) == (f"{events}:2", "this is no step of a run") and found.hint
    assert not (tmp_path / "a/report.html").exists()
    events.write_text(whole + line[:-1])  # a run may be at it
    assert invoke(tmp_path / "a").exit_code == 0


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"passes": 5}, "$.passes"),
        ({"models": {"dense": [1]}}, "$.models.dense"),
        ({"kept": {"attention": {"0": 3}, "feed_forward": {}}}, "$.kept.attention['0']"),
        ({"provenance": fake_report()["provenance"] | {"plan": {"passes": 5}}}, "$.provenance.plan.passes"),
    ],
)
def test_a_report_of_another_shape_is_an_error_with_its_place(
    tmp_path: Path, changes: dict[str, Any], place: str
) -> None:
    done = invoke(folder(tmp_path / "a", **changes))
    assert isinstance(done.exception, InputError) and done.exception.exit_code == 3
    assert done.exception.diagnostics[0].file == str(tmp_path / "a/report.json")
    assert f"this is not a report as this release writes them: {place}: " in done.exception.diagnostics[0].message


def test_a_run_of_before_samples_and_provenance_is_shown_without_them(tmp_path: Path) -> None:
    report = fake_report()
    del report["provenance"]
    for model in report["models"].values():
        del model["samples"]
    out = tmp_path / "old"
    out.mkdir()
    (out / "report.json").write_text(json.dumps(report))
    assert invoke(out).stdout == f"report: {out}/report.html\n"
    page = (out / "report.html").read_text()
    assert "<h2>Models</h2>" in page and "<h2>Samples</h2>" not in page
    assert "<summary>The plan</summary>" not in page and "torch" in page


def test_more_heads_than_a_map_has_room_for_are_a_bar(tmp_path: Path) -> None:
    out = folder(tmp_path / "a", config={"num_heads": 10**9, "dim_ff": 256, "num_layers": 4})
    assert invoke(out).exit_code == 0
    assert "layer 0: 4 of 1,000,000,000 heads kept" in (out / "report.html").read_text()
