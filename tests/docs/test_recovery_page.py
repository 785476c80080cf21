"""docs/quality.md tells of a real model's recovery what its benchmark has measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recovery(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import recovery

    yield recovery
    for name in ("recovery", "recovery_tables", "smollm2", "measure"):
        sys.modules.pop(name, None)


def test_the_tables_are_what_was_measured(recovery: ModuleType) -> None:
    results = json.loads((ROOT / "benchmarks/recovery.json").read_text())
    assert (ROOT / "docs/quality.md").read_text() == recovery.page(results), "run benchmarks/recovery.py --publish"
    small = {name: way["parameters"] for name, way in results["ways"].items() if not name.startswith("dense")}
    assert max(small.values()) <= 0.82 * results["dense"]["parameters"]


def test_what_is_said_of_docstrings_was_measured(recovery: ModuleType) -> None:
    import recovery_tables

    ways = json.loads((ROOT / "benchmarks/recovery.json").read_text())["ways"]

    def less(one: str, other: str) -> float:
        """How many standard errors lower."""
        found = recovery_tables.difference(ways[one]["losses"], ways[other]["losses"], "docstrings").split(" ± ")
        return -float(found[0]) / float(found[1])

    for cut in ("scores", "gates, 5%", "gates, 30%"):
        assert less(f"{cut}: distilled", f"{cut}: tuned") > 3
    assert less("scores: LoRA", "scores: tuned") > 3
    assert less("scores: distilled", "gates, 5%: distilled") > 3 < less("gates, 5%: distilled", "gates, 30%: distilled")
    assert less("dims by scores: distilled", "dims by torch-pruning: distilled") > 3
    assert sum(way["seconds"] for way in ways.values()) < 3600


def test_differences_are_paired(recovery: ModuleType) -> None:
    import recovery_tables

    places = recovery_tables.WINDOWS["book"]
    ones = [float(place) for place in range(places + 2)]
    others = [one - 0.25 for one in ones]
    assert recovery_tables.difference(ones, others, "book") == "+0.250 ± 0.000"
    assert recovery_tables.difference(ones, [*others[:-1], 0.0], "docstrings") == "+32.625 ± 32.375"


def test_rows_are_found_again_whatever_lies_between(recovery: ModuleType) -> None:
    import torch

    whole = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    assert recovery.rows_kept(whole, whole[[0, 3, 17, 39]]) == [0, 3, 17, 39]
