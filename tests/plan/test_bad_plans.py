"""Every plan in tests/plans/bad is told what expected.json says, to the letter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sprunec.errors import InputError
from sprunec.plan.plan import check_plan, read_plan
from sprunec.plan.schema import validator

BAD = Path(__file__).parents[1] / "plans" / "bad"
EXPECTED = json.loads((BAD / "expected.json").read_text(encoding="utf-8"))
FILES = sorted(path.name for path in BAD.glob("*.json") if path.name != "expected.json")


@pytest.fixture(autouse=True)
def _beside_the_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)
    monkeypatch.setattr("sprunec.plan.checks.find_spec", lambda package: package)  # all of them are installed


def test_every_bad_plan_is_expected() -> None:
    assert sorted(EXPECTED) == FILES


@pytest.mark.parametrize("file", FILES)
def test_bad_plan_is_told(file: str) -> None:
    plan, found = check_plan(file)
    assert [str(finding) for finding in found] == EXPECTED[file]
    assert (plan is None) == any(finding.severity == "error" for finding in found)


@pytest.mark.parametrize("file", FILES)
def test_findings_fit_their_schema(file: str) -> None:
    found = check_plan(file)[1]
    document = {"valid": False, "diagnostics": [finding.as_dict() for finding in found]}
    assert [error.message for error in validator("diagnostics").iter_errors(document)] == []


def test_read_plan_raises_all_findings() -> None:
    with pytest.raises(InputError) as caught:
        read_plan("several-at-once.json")
    assert [str(finding) for finding in caught.value.diagnostics] == EXPECTED["several-at-once.json"]
    assert len(EXPECTED["several-at-once.json"]) == 6


def test_missing_plan_is_an_input_error() -> None:
    with pytest.raises(InputError) as caught:
        read_plan("nowhere.json")
    assert [finding.code for finding in caught.value.diagnostics] == ["missing-file"]
    assert str(caught.value) == "nowhere.json: error: there is no such file; check the path"


def test_folder_is_no_plan() -> None:
    assert [finding.code for finding in check_plan("..")[1]] == ["not-a-file"]


def test_strict_makes_missing_files_errors() -> None:
    relaxed, strict = check_plan("missing-files.json"), check_plan("missing-files.json", strict=True)
    assert relaxed[0] is not None
    assert {finding.severity for finding in relaxed[1]} == {"warning"}
    assert strict[0] is None
    assert [(f.code, f.pointer) for f in strict[1]] == [(f.code, f.pointer) for f in relaxed[1]]
    assert {finding.severity for finding in strict[1]} == {"error"}


def test_very_deep_nesting_is_one_finding(tmp_path: Path) -> None:
    deep = tmp_path / "deep.json"
    deep.write_text('{"a": ' * 100_000)
    assert [finding.code for finding in check_plan(deep)[1]] == ["too-deep"]
