"""The runs that a page shows, as their folders have them: a stranger's files, read with care."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sprunec.durable import naming, read_file
from sprunec.errors import Diagnostic, InputError
from sprunec.plan.schema import validator

Events = Sequence[Mapping[str, Any]]
GATES = ("kept_percent", "kept_quantiles")  # of events: by kind of unit and layer how likely gates are kept
RUN_AGAIN = "run the plan again there: what is done is not done again"


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: as the page calls it: its plan's name, with its folder where several have that.
        report: of `report.json`.
        events: the lines of `events.jsonl`.
        number: which of the page's runs it is; it has its colour by that.
    """

    name: str
    report: Mapping[str, Any]
    events: Events = ()
    number: int = 0


def read_run(out: Path) -> Run:
    """Read what is in OUT of a run that is this release's own."""
    report = json.loads(read_file(out / "report.json"))
    return Run(plan_name(report), report, read_events(out / "events.jsonl"))


def open_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs of anyone; raise InputError where a folder has none, or its report is not what a run writes."""
    found = []
    for out in folders:
        path = out / "report.json"
        if not os.path.isfile(path):
            raise InputError.at(out, "there is no report.json here", "give the folder of a run, as in --out")
        try:
            run = read_run(out)
            wrong = next(validator("report").iter_errors(run.report), None)
        except (ValueError, RecursionError, KeyError, TypeError):
            raise InputError.at(path, "this is not the report of a run", RUN_AGAIN) from None
        if wrong is not None:
            message = f"this is not a report as this release writes them: {wrong.json_path}: {wrong.message}"
            raise InputError.at(path, message, RUN_AGAIN)
        found.append(run)
    names = Counter(run.name for run in found)
    return [
        replace(run, name=run.name if names[run.name] == 1 else f"{run.name} ({out})", number=number)
        for number, (run, out) in enumerate(zip(found, folders, strict=True))
    ]


def plan_name(report: Mapping[str, Any]) -> str:
    plan = report["plan"]
    return str(plan.get("name", "run") if isinstance(plan, Mapping) else plan)


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read the steps so far; the last line of a run that is still writing may be cut off, and is left out.

    Raises:
        InputError: another line is none that a run writes.
    """
    with naming(path):
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = text.split("\n")
    events = [_event(line) for line in lines]
    if None in events[:-1]:
        message, line = "this is no step of a run", 1 + events.index(None)
        raise InputError(Diagnostic("bad-input", message, RUN_AGAIN, file=str(path), line=line))
    return [event for event in events if event is not None]


def _event(line: str) -> dict[str, Any] | None:
    """Read a step; None where its parts are not of the kinds that charts go through."""
    with suppress(ValueError, RecursionError):
        event = json.loads(line)
        if not isinstance(event, dict) or "node" not in event:
            return None
        budgets, gates = event.get("budgets") or [], [event.get(name) or {} for name in GATES]
        named = isinstance(budgets, list) and all(isinstance(each, dict) and "name" in each for each in budgets)
        layers = [each for units in gates for each in (units.values() if isinstance(units, dict) else [None])]
        if named and all(isinstance(each, dict) and all(isinstance(g, list) for g in each.values()) for each in layers):
            return event
    return None
