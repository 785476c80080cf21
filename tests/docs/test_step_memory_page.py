"""docs/benchmarks.md tells of losses in chunks what their benchmark has measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_table_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("step_memory", "llamas"):
        sys.modules.pop(name, None)
    import step_memory

    found = json.loads((ROOT / "benchmarks/step_memory.json").read_text())
    assert (ROOT / "docs/benchmarks.md").read_text() == step_memory.page(found), (
        "run benchmarks/step_memory.py --publish"
    )
    plain, chunks = found["layers"]["4"].values()
    assert chunks["peak"] - chunks["between"] < 0.5 * (plain["peak"] - plain["between"])
    assert chunks["seconds"] < 1.05 * plain["seconds"]
