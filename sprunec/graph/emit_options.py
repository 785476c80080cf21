"""What `emit` is told about the formats that it writes, beyond their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sprunec.graph.graph import file_digest
from sprunec.plan.export_formats import FORMATS
from sprunec.plan.plan import Plan


def emit_options(
    plan: Plan, formats: tuple[str, ...], dtype: str
) -> tuple[dict[str, Any], dict[str, tuple[Path, ...]]]:
    """Options that decide what the formats hold, and the files that go into them."""
    options: dict[str, Any] = {"formats": formats}
    files: dict[str, tuple[Path, ...]] = {}
    if any(FORMATS[name].folds for name in formats):
        options["dtype"] = dtype
    for name in formats:
        own, given = FORMATS[name].options(plan)
        options |= own | {role: file_digest(path) for role, paths in given.items() for path in paths}
        files |= given
    return options, files
