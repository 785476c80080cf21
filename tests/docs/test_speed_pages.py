"""docs/benchmarks.md tells of speed what its benchmarks have measured."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("script", ["commands", "latency", "savings", "steps"])
def test_the_table_is_what_was_measured(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = {*sys.modules}
    module = importlib.import_module(script)
    for name in {*sys.modules} - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == ROOT / "benchmarks":
            sys.modules.pop(name)
    results = json.loads((ROOT / f"benchmarks/{script}.json").read_text())
    assert (ROOT / "docs/benchmarks.md").read_text() == module.page(results), f"benchmarks/{script}.py --publish"
