"""BMCook's files as a native plan to keep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sprunec.durable import naming, write_atomically
from sprunec.errors import Diagnostic, InputError
from sprunec.plan.bmcook_flags import NO_FLAGS, Flags
from sprunec.plan.open_plan import read_any
from sprunec.plan.plan import check_source


def convert_plan(
    path: str | Path, seconds: Sequence[str | Path] = (), flags: Flags = NO_FLAGS, output: Path | None = None
) -> tuple[dict[str, Any], tuple[Diagnostic, ...]]:
    """Make the native plan of BMCook's files, and tell what the user should know about it.

    Args:
        seconds: l0_pruning.json files, a stage each.
        output: write the plan there; its relative paths are then those of this file's folder.

    Raises:
        InputError: the files make no plan, or there is another file at `output`.
    """
    source = read_any(path, flags, seconds)
    if not source.is_made:
        raise InputError.at(path, "this is a plan already", "name bmcook.json")
    found = check_source(source, incomplete=True)[1]
    if any(finding.severity == "error" for finding in found):
        raise InputError(*found)
    document: dict[str, Any] = source.value
    if output is not None:
        from sprunec.bmcook.plans.document import rebase

        document = rebase(document, output.parent)
        text = plan_text(document)
        if output.is_dir():
            raise InputError.at(output, "this is a folder", "name a file in it")
        try:
            with naming(output):
                other = output.exists() and output.read_text(encoding="utf-8", errors="replace") != text
            if other:
                raise InputError.at(output, "there is a file already", "remove it, or name another")
            write_atomically(output, text)
        except OSError as error:
            raise InputError.of_disk(output, error, "cannot be written", code="unwritable") from error
    return document, found


def plan_text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
