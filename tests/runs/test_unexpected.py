"""What nobody foresaw: one line, exit code 1, the traceback in OUT/error.txt, and one document with --json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from sprunec import cli
from sprunec.__main__ import command
from sprunec.compiler import inspect as inspecting
from sprunec.compiler import lower
from sprunec.engines.processes.distributed import ProcessGroup
from sprunec.execution import execute as executing
from sprunec.execution import store
from sprunec.execution.ranks import explain
from sprunec.passes import cut as rewrite
from sprunec.plan import plan as plans
from sprunec.plan.schema import validator
from sprunec.show.report import page as pages
from sprunec.unexpected import UnexpectedError, explained, own_words
from tests.helpers.small_plans import EMIT, MODEL, plan, read_report, save_weights, write

SCORE = {"pass": "score-mask", "criterion": "magnitude", "unit": "dim_ff", "target": {"dim_ff": 20}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a plan is that does little."""
    content = plan(SCORE, EMIT, model={"config": MODEL, "checkpoint": "weights.pt"}, compare={"tokens": 20})
    del content["data"], content["evaluate"]
    save_weights(tmp_path / "weights.pt")
    write(tmp_path, content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `sprunec ...`."""
    monkeypatch.setattr("sys.argv", ["sprunec", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("float32_noise"), "KeyError: 'float32_noise'"),
        (ValueError("first line\nsecond line"), "ValueError: first line"),
        (MemoryError(), "MemoryError"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (ImportError("no module named [red]"), "ImportError: no module named [red]"),
        (StopIteration(3), "StopIteration: 3"),
        (TimeoutError("no answer"), "TimeoutError: no answer"),
        (OSError("Can't load the tokenizer"), "OSError: Can't load the tokenizer"),
    ],
)
def test_an_error_in_a_pass_is_one_line_that_names_it(
    error: Exception, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(rewrite, "run", failing(error))
        assert run(patch, "run", "plan.json", "--out", "out", "--quiet") == 1
    line = f"4-rewrite (slices only): {words}; the traceback is in out/error.txt"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {line}"
    assert read_report(folder / "out")["error"] == line and read_report(folder / "out")["status"] == "failed"
    text = (folder / "out/error.txt").read_text()
    assert text.startswith("Traceback") and "in fail" in text and type(error).__name__ in text
    assert run(monkeypatch, "run", "plan.json", "--out", "out", "--quiet") == 0
    assert not (folder / "out/error.txt").exists()


@pytest.mark.parametrize(
    ("place", "name", "doing", "status"),
    [
        (executing, "publish", "the run in out", "failed"),
        (executing.Run, "begin", "running plan.json", None),
        (store.Store, "keep", "1-load (weights.pt)", "failed"),
        (pages, "page_text", "running plan.json", "done"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_an_error_around_the_passes_is_told_alike(
    place: Any,
    name: str,
    doing: str,
    status: str | None,
    as_json: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(place, name, failing(TypeError("what is this")))
    assert run(monkeypatch, "run", "plan.json", "--out", "out", *(["--json"] if as_json else ["--quiet"])) == 1
    told = capsys.readouterr()
    line = f"{doing}: TypeError: what is this; the traceback is in out/error.txt"
    assert told.err.splitlines()[-1] == f"error: {line}"
    assert "what is this" in (folder / "out/error.txt").read_text()
    found = read_report(folder / "out")["status"] if (folder / "out/report.json").exists() else None
    assert found == status
    if as_json:
        document = json.loads(told.out)
        words = document["error"] if status == "failed" else document["diagnostics"][0]["message"]
        kind = "report" if status == "failed" else "diagnostics"
        assert words == line and [each.message for each in validator(kind).iter_errors(document)] == []


@pytest.mark.parametrize(
    ("place", "name", "command"),
    [
        (lower, "_finish", ["run", "plan.json"]),
        (plans, "check_plan", ["validate", "plan.json"]),
        (inspecting, "inspect_model", ["inspect", "weights.pt"]),
    ],
)
def test_without_a_folder_of_a_run_the_traceback_is_a_temporary_file(
    place: Any,
    name: str,
    command: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(place, name, failing(ZeroDivisionError("by zero")))
    assert run(monkeypatch, *command, "--json") == 1
    told = capsys.readouterr()
    file = re.search(r"ZeroDivisionError: by zero; the traceback is in (\S+error\.txt)\n$", told.err)
    assert file is not None and "by zero" in Path(file[1]).read_text() and Path(file[1]).is_relative_to(folder)
    assert file[1] in json.loads(told.out)["diagnostics"][0]["message"]


def test_a_folder_that_takes_no_file_does_not_lose_the_traceback(folder: Path) -> None:
    (folder / "out/error.txt").mkdir(parents=True)
    told = explained(ValueError("lost?"), "working", folder / "out")
    assert isinstance(told, UnexpectedError) and told.file is not None
    assert not told.file.is_relative_to(folder / "out") and "lost?" in told.file.read_text()
    assert explained(told, "elsewhere", folder) is told


def test_a_page_that_fails_after_a_pass_does_not_hide_the_pass(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rewrite, "run", failing(ValueError("the cause")))
    monkeypatch.setattr(pages, "page_text", failing(TypeError("the page")))
    assert run(monkeypatch, "run", "plan.json", "--out", "out", "--quiet") == 1
    assert "the cause" in capsys.readouterr().err


def test_debug_shows_the_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rewrite, "run", failing(ValueError("the cause")))
    assert run(monkeypatch, "run", "plan.json", "--out", "out", "--quiet", "--debug") == 1
    told = capsys.readouterr().err
    assert told.count("Traceback") == 1
    assert run(monkeypatch, "run", "plan.json", "--out", "out", "--quiet") == 1
    assert "Traceback" not in capsys.readouterr().err


def test_json_tells_of_this_run_and_of_no_other_in_its_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "run", "plan.json", "--out", "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["status"] == "done"
    monkeypatch.setattr(executing, "_check_ready", failing(PermissionError(13, "Permission denied", "weights.pt")))
    assert run(monkeypatch, "run", "plan.json", "--out", "out", "--json") == 1
    assert "Permission denied" in json.loads(capsys.readouterr().out)["diagnostics"][0]["message"]


def test_a_wrong_use_of_flags_stays_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "run", "plan.json", "--out", "out", "--save", "other") == 2
    assert "are two folders" in capsys.readouterr().err and not (folder / "out").exists()


def test_another_rank_says_where_its_traceback_is(folder: Path) -> None:
    class Quiet(ProcessGroup):
        def __init__(self) -> None:
            self.rank, self.said = 1, ""

        def complain(self, words: str) -> None:
            self.said = words

        def is_over(self) -> bool:
            return True

    group = Quiet()
    assert explain(group, KeyError("shard")) == 1
    assert re.fullmatch(r"its part of the pass: KeyError: 'shard'; the traceback is in \S+error\.txt", group.said)


def test_the_words_of_an_exception_are_its_first_line() -> None:
    assert [own_words(error) for error in (ValueError("  a\nb"), ValueError(), ValueError("\n"))] == [
        "ValueError: a", "ValueError", "ValueError",
    ]  # fmt: skip


@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupted_run_has_its_document_too(
    begun: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, name = (rewrite, "run") if begun else (lower, "_finish")
    monkeypatch.setattr(place, name, failing(KeyboardInterrupt()))
    assert run(monkeypatch, "run", "plan.json", "--out", "out", "--json") == 130
    document = json.loads(capsys.readouterr().out)
    assert (document["status"] if begun else document["diagnostics"][0]["code"]) == "interrupted"
    assert [each.message for each in validator("report" if begun else "diagnostics").iter_errors(document)] == []


@pytest.mark.parametrize(("end", "code"), [(SystemExit(130), 130), (KeyboardInterrupt(), 130), (SystemExit(4), None)])
def test_only_an_interrupted_process_ends_at_once(
    end: BaseException, code: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = list[int]()
    monkeypatch.setattr(cli, "main", failing(end))
    monkeypatch.setattr("os._exit", ended.append)
    with pytest.raises(SystemExit) if not isinstance(end, KeyboardInterrupt) else nullcontext():
        command()
    assert ended == ([] if code is None else [code])
