"""docs/quality.md and the README tell of small models what the benchmark has measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import quality

    yield quality
    for name in ("quality", "quality_tables", "methods", "peers"):
        sys.modules.pop(name, None)


def test_page_and_readme_are_made_from_what_was_measured(quality: object) -> None:
    results = json.loads((ROOT / "benchmarks" / "quality.json").read_text())
    assert (ROOT / "docs" / "quality.md").read_text() == quality.page(results), "run benchmarks/quality.py --publish"
    (main,) = (table for table in quality.tables(results["cells"]) if table.setting == quality.MAIN)
    losses = {row.method: row.loss for row in main.rows}
    readme = " ".join((ROOT / "README.md").read_text().split())
    told = f"dense model ends at a loss of {main.dense:.3f}, and at {main.rows[0].share:.0%} of its parameters "
    told += f"`reconstruction` at {losses['reconstruction']:.3f}, learned masks at {losses['train-mask']:.3f}, "
    assert told + f"random ones at {losses['random']:.3f}." in readme


def test_page_keeps_prose_and_replaces_tables(quality: object) -> None:
    results = json.loads((ROOT / "benchmarks" / "quality.json").read_text())
    page = quality.page({"machine": "none", "cells": results["cells"]})
    assert "Machine: none." in page and page.startswith("# What pruned models are worth")
    assert all(page.count(table.markdown()) == 1 for table in quality.tables(results["cells"]))


def test_a_table_holds_means_and_standard_errors(quality: object) -> None:
    cell = {"corpus": "c", "target": "t", "budget": "short", "extras": [], "distil": 0.0, "dense": 1.0, "share": 0.5}
    cells = {
        str(n): cell | {"method": method, "cut": 2.0, "loss": loss, "seconds": 10}
        for n, (method, loss) in enumerate([("a", 1.5), ("b", 1.2), ("b", 1.4)])
    }
    (table,) = quality.tables(cells)
    assert [(row.method, round(row.loss, 6), row.seeds) for row in table.rows] == [("b", 1.3, 2), ("a", 1.5, 1)]
    assert table.rows[0].error == pytest.approx(0.1) and table.rows[1].error is None
