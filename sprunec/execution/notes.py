"""What an emitted model says about the run that made it: see `checkpoint/provenance.py` for the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sprunec.execution.store import strict_json
from sprunec.graph.graph import Graph


def origin_of(graph: Graph, report: Mapping[str, Any], made: str | None) -> dict[str, Any]:
    """Make the note: nothing in it depends on how often a run was stopped, but when its model was made.

    Args:
        graph: its plan is told whole, and the sha256 of the checkpoint that it started from.
        report: the run's, with all passes done.
    """
    measured = ("parameters", "loss", "perplexity")
    models = {role: {key: found[key] for key in measured} for role, found in report["models"].items() if found}
    note = {
        "plan": graph.resolved,
        "checkpoint": graph.node(graph.roles.source).options.checkpoint or None,
        "made": made,
        "versions": report["versions"],
        "passes": [{key: entry[key] for key in ("name", "pass", "digest")} for entry in report["passes"]],
        "models": models,
        "comparison": report["comparison"],
        "formats": report.get("formats", {}),
        "kept": report["kept"],
        "budgets": report["budgets"],
    }
    plain: dict[str, Any] = json.loads(strict_json(note))
    return plain
