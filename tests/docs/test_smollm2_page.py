"""docs/benchmarks.md tells of a real model what its benchmark has measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_table_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import smollm2

    results = json.loads((ROOT / "benchmarks/smollm2.json").read_text())
    page = (ROOT / "docs/benchmarks.md").read_text()
    for name in ("smollm2", "measure"):
        sys.modules.pop(name, None)
    assert page == smollm2.page(results), "run benchmarks/smollm2.py --publish"
    ways = results["ways"]
    assert results["dense"]["reopened_difference"] == 0.0
    assert ways["dims: sprunec"]["perplexity"] <= 18.6 and ways["groups: sprunec"]["perplexity"] <= 21.4
    peers = [ways[name]["perplexity"] for name in ways if name.startswith(("dims: torch", "dims: opti"))]
    assert len(peers) == 4 and ways["dims: sprunec"]["perplexity"] < min(peers)
