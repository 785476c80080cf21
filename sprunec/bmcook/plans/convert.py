"""BMCook's files as a native plan to keep."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sprunec.compiler.plan_file import write_plan
from sprunec.errors import Diagnostic, InputError
from sprunec.plan.bmcook_flags import NO_FLAGS, Flags
from sprunec.plan.open_plan import read_any
from sprunec.plan.plan import check_source
from sprunec.plan.source import has_errors

PATHS = ("config", "checkpoint", "path", "save_mask", "teacher")


def convert_plan(
    path: str | Path, seconds: Sequence[str | Path] = (), flags: Flags = NO_FLAGS, output: Path | None = None
) -> tuple[dict[str, Any], tuple[Diagnostic, ...]]:
    """Make the native plan of BMCook's files, and tell what the user should know about it.

    Args:
        seconds: l0_pruning.json files, a stage each.
        output: write the plan there, unless another file is; its relative paths are then those of this file's folder.
    """
    source = read_any(path, flags, seconds)
    if not source.is_made:
        raise InputError.at(path, "this is a plan already", "name bmcook.json")
    found = check_source(source, incomplete=True)[1]
    if has_errors(found):
        raise InputError(*found)
    document: dict[str, Any] = source.value
    if output is not None:
        document = _rebased(document, output.parent)
        write_plan(output, document)
    return document, found


def _rebased(node: Any, folder: Path, key: str = "") -> Any:
    """Give the plan for a file in `folder`: its relative paths name the same files from there."""
    if key == "outputs":  # these are names of files in OUT
        return node
    if isinstance(node, dict):
        return {name: _rebased(value, folder, name) for name, value in node.items()}
    if isinstance(node, list):
        return [_rebased(value, folder, key) for value in node]
    if key not in PATHS or os.path.isabs(node):
        return node
    return os.path.relpath(os.path.realpath(node), os.path.realpath(folder))
