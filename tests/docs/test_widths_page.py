"""docs/benchmarks.md tells of layers of real widths what their benchmark has measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_table_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import widths

    results = json.loads((ROOT / "benchmarks/widths.json").read_text())
    page = (ROOT / "docs/benchmarks.md").read_text()
    for name in ("widths", "measure"):
        sys.modules.pop(name, None)
    assert page == widths.page(results), "run benchmarks/widths.py --publish"
    widest = results["widths"]["Llama-3-8B"]["blocks"]
    assert sum(widest[stage]["cpu"] for stage in widths.STAGES) < 240
    assert widest["peak"] < 6e9
