"""docs/benchmarks.md tells of large language models what their benchmark has measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_tables_are_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import large_lms

    results = json.loads((ROOT / "benchmarks/large_lms.json").read_text())
    page = (ROOT / "docs/benchmarks.md").read_text()
    assert page == large_lms.page(results), "run benchmarks/large_lms.py SHAPE --publish"


def test_a_shape_of_seventy_billion_is_looked_at_in_half_a_minute_and_three_gigabytes() -> None:
    found = json.loads((ROOT / "benchmarks/large_lms.json").read_text())["70b"]
    assert found["parameters"] == 70_553_706_496 and found["tokens"] == 2048
    for look in (found["inspect"], found["dry_run"]):
        assert look["code"] == 0 and look["seconds"] < 30 and look["over_bare"] + found["bare"] < 3e9
