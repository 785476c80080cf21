"""A form that fails, however, does not take the others with it: it alone is not published, and the exit code is 1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from sprunec.cli import main
from sprunec.errors import FormatError
from sprunec.execution.store import Store
from sprunec.passes import emit
from sprunec.passes.measuring import compare_format
from sprunec.plan.export_formats import Format, Reopened
from sprunec.plan.schema import validator
from tests.helpers.small_plans import MODEL, execute, plan, read_report, save_weights, write

SCORE = {"pass": "score-mask", "criterion": "magnitude", "unit": "head", "tie_heads": True, "target": {"num_heads": 3}}
FORMS = ("sprunec", "cpm-live", "pt2")
COMPARED = {"max_abs_difference", "tolerance", "noise", "tokens", "dtype"}


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all forms have been emitted, and compared on fewer tokens than the tests do."""
    directory = tmp_path_factory.mktemp("emitted")
    save_weights(directory / "weights.pt")
    execute(content_of(FORMS, tokens=19), directory)
    return directory


@pytest.fixture
def folder(emitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(emitted, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def content_of(forms: tuple[str, ...], tokens: int = 20) -> dict[str, Any]:
    model = {"config": MODEL, "checkpoint": "weights.pt"}
    content = plan(SCORE, {"pass": "emit", "formats": list(forms)}, model=model, compare={"tokens": tokens})
    del content["data"], content["evaluate"]
    return content


def run(monkeypatch: pytest.MonkeyPatch, *forms: str, arguments: tuple[str, ...] = ("--quiet",)) -> int:
    """The exit code of a run that emits these."""
    content = content_of(forms)
    monkeypatch.setattr("sys.argv", ["sprunec", "run", str(write(Path(), content)), "--out", "out", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    report = read_report(Path("out"))
    assert [error.message for error in validator("report").iter_errors(report)] == []
    return int(stop.value.code or 0)


def broken(monkeypatch: pytest.MonkeyPatch, *names: str, how: Callable[[Tensor], Tensor]) -> None:
    """What these forms say, opened again, is put through `how`."""

    def reopen(form: Format) -> Callable[..., Reopened]:
        def changed(*arguments: Any) -> Reopened:
            opened = form.reopen(*arguments)
            return replace(opened, logits=lambda inputs: how(opened.logits(inputs)))

        return changed

    forms = compare_format.FORMATS
    found = {name: replace(form, reopen=reopen(form)) if name in names else form for name, form in forms.items()}
    monkeypatch.setattr(compare_format, "FORMATS", found)


def raising(error: Exception) -> Callable[[Tensor], Tensor]:
    def fail(_: Tensor) -> Tensor:
        raise error

    return fail


def published() -> list[str]:
    return sorted(path.name for path in Path("out/model").glob("*"))


def test_a_form_that_differs_is_left_out_until_it_does_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        broken(patch, "cpm-live", how=lambda logits: logits + 0.5)
        for _ in range(2):  # the second time all but what failed is in the store
            capsys.readouterr()
            assert run(patch, *FORMS) == 1
            told, report = capsys.readouterr(), read_report(Path("out"))
            assert "the format cpm-live differs from the model it was made of by 0.5 on 20 tokens" in told.err
            assert "cpm-live is not published" in " ".join(told.out.split())
            assert published() == ["pt2", "sprunec"] and Path("out/masks/head_mask.pt").exists()
            assert report["status"] == "comparison-failed" and "cpm-live differs" in report["error"]
            assert report["formats"]["cpm-live"]["max_abs_difference"] == pytest.approx(0.5, rel=1e-4)
            assert "error" not in report["formats"]["pt2"] and report["comparison"]["max_abs_difference"] < 1e-12
            assert "cpm-live is not published" in Path("out/report.html").read_text()
            origin = json.loads(Path("out/model/pt2/origin.json").read_text())
            assert "differs" in origin["formats"]["cpm-live"]["error"]
    monkeypatch.setattr("sys.argv", ["sprunec", "gc", "out"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert run(monkeypatch, *FORMS) == 0
    assert published() == ["cpm-live", "pt2", "sprunec"] and read_report(Path("out"))["error"] is None


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda logits: logits * float("nan"), "differs from the model it was made of by inf"),
        (raising(FormatError("it cannot be opened")), "it cannot be opened"),
        (raising(KeyError("weights")), "KeyError: 'weights'; the traceback is in out/error.txt"),
        (raising(OSError(28, "No space left on device", "/tmp/words.pt")), "/tmp/words.pt: No space left on device"),
    ],
)
def test_however_it_fails_the_others_are_handed_out(
    how: Callable[[Tensor], Tensor], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, "pt2", how=how)
    assert run(monkeypatch, *FORMS, arguments=("--json",)) == 1
    found = read_report(Path("out"))["formats"]["pt2"]
    assert found.keys() == COMPARED | {"error"} and words in found["error"]
    assert found["max_abs_difference"] is None and published() == ["cpm-live", "sprunec"]


@pytest.mark.parametrize("how", [lambda logits: logits + 1, raising(ValueError("what"))])
def test_where_all_fail_nothing_is_handed_out_and_each_says_why(
    how: Callable[[Tensor], Tensor], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, "cpm-live", "pt2", how=how)
    assert run(monkeypatch, "cpm-live", "pt2") == 1
    report = read_report(Path("out"))
    assert all("error" in report["formats"][form] for form in ("cpm-live", "pt2"))
    assert Path("out/report.html").read_text().count("is not published") == 2
    assert not any(Path("out", name).exists() for name in ("model", "masks", "recipe.json"))


def test_a_form_that_cannot_be_written_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(job: Any, directory: Path) -> dict[str, Any]:
        directory.mkdir()
        (directory / "half.pt").write_bytes(b"half")
        raise FormatError("the format pt2 cannot hold this model")

    shutil.rmtree(folder / "out")
    forms = dict(emit.FORMATS) | {"pt2": replace(emit.FORMATS["pt2"], write=half)}
    monkeypatch.setattr(emit, "FORMATS", forms)
    for _ in range(2):
        assert run(monkeypatch, *FORMS) == 1
        assert published() == ["cpm-live", "sprunec"]
        assert read_report(Path("out"))["formats"]["pt2"]["error"] == "the format pt2 cannot hold this model"
    assert not list(Path("out").rglob("half.pt"))
    assert run(monkeypatch, "pt2") == 1
    assert read_report(Path("out"))["status"] == "failed" and published() == []


def test_a_failure_of_the_store_is_no_forms(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Store.keep

    def keep(self: Store, node: Any, *rest: Any) -> Any:
        if node.pass_ == "compare-format":
            raise TypeError("the store's own")
        return whole(self, node, *rest)

    monkeypatch.setattr(Store, "keep", keep)
    assert run(monkeypatch, *FORMS) == 1
    assert read_report(Path("out"))["status"] == "failed" and published() == []
