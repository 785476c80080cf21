"""What commands print on stdout when they have done their work, or with --json when they could not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.text import Text

from sprunec.compiler.lower import with_own_head
from sprunec.errors import Diagnostic, InputError, disk_words
from sprunec.execution.fits import misfits, tight
from sprunec.execution.store import Store, strict_json
from sprunec.machine import physical_memory
from sprunec.plan.scale import plan_costs
from sprunec.show.console import print_diagnostics, say
from sprunec.show.graph_tree import FORMS, graph_table
from sprunec.show.numbers import number
from sprunec.show.report_words import models_of
from sprunec.show.tables import kept_table, result_table, tasks_table
from sprunec.unexpected import explained

if TYPE_CHECKING:
    from sprunec.compiler.speeds import Speeds
    from sprunec.execution.report import Report
    from sprunec.graph.graph import Graph
    from sprunec.plan.plan import Plan


def print_json(document: Any) -> None:
    print(strict_json(document), flush=True)  # the process may be ended right after


def diagnostics_document(found: Sequence[Diagnostic]) -> dict[str, Any]:
    valid = not any(finding.severity == "error" for finding in found)
    return {"valid": valid, "diagnostics": [finding.as_dict() for finding in found]}


def print_error(error: BaseException) -> None:
    """Print an error on stderr, on one line, however long, with any brackets in paths as they are."""
    if isinstance(error, InputError):
        print_diagnostics(error.diagnostics)
    else:
        say(Text.assemble(("error:", "red"), f" {_message(error)}"), Console(stderr=True))


def _message(error: BaseException) -> str:
    return disk_words(error) if isinstance(error, OSError) else str(error)


def print_failure(error: BaseException, folder: Path | None) -> None:
    """Print the run's own report, where it is in `folder` and tells of this error, else the findings."""
    if isinstance(error, InputError):
        print_json(diagnostics_document(error.diagnostics))
        return
    wanted, finding = ("error", _message(error)), Diagnostic("failed", _message(error))
    if isinstance(error, KeyboardInterrupt):
        wanted = ("status", "interrupted")
        finding = Diagnostic("interrupted", "interrupted", "run the same command again")
    text, told = "", False
    with suppress(OSError, ValueError, TypeError, AttributeError):
        text = (folder / "report.json").read_text(encoding="utf-8") if folder is not None else "{}"
        told = json.loads(text).get(wanted[0]) == wanted[1]  # else it is of an earlier run in this folder
    if told:
        print(text, flush=True)
    else:
        print_json(diagnostics_document([finding]))


def draw(picture: RenderableType) -> None:
    """Print what people look at; a row that does not fit in any way runs over the edge unbroken."""
    Console().print(picture, crop=False)


@dataclass(frozen=True)
class DryRun:
    """How to look at a run.

    Attributes:
        devices: how many train together.
        measure: say how long it takes, by a block that is run here. That alone needs torch.
        speeds: say how long it takes, by what the user says of the device.
        memory: bytes that the device has; None: as many as this machine.
        form: write the graph for another tool, as `graph_tree.FORMS` names it.
    """

    devices: int = 1
    measure: bool = False
    speeds: Speeds | None = None
    memory: float | None = None
    form: str | None = None


def show_graph(plan: Plan, graph: Graph, folder: Path, how: DryRun, as_json: bool) -> None:
    """Show what a run would do, and on stderr what of it does not fit, or may not."""
    store, own, speeds = Store(folder / "store"), with_own_head(plan), how.speeds
    cached = {node.name: store.has(node) for node in graph.nodes}
    if how.measure:
        from sprunec.compiler.measured import measure

        speeds = measure(own)
    document = graph.document(cached, None if speeds is None else speeds.seconds)
    document |= {"training": plan_costs(own, how.devices), "measured": None if speeds is None else speeds.document()}
    if as_json:
        print_json(document)
    elif how.form is not None:
        print(FORMS[how.form](document))
    else:
        draw(graph_table(document))
    memory = how.memory or float(physical_memory())
    found = [*misfits(graph, store, "cpu", memory)]
    if how.devices == 1:
        found += tight(graph, store, memory, "this machine" if how.memory is None else "the device")
    print_diagnostics(found)


def show_report(report: Report, folder: Path, as_json: bool) -> None:
    if as_json:
        print_json(report.data)
        return
    console = Console()
    if all(entry["cached"] for entry in report.data["passes"]):
        say("every pass was done before; nothing to do", console)
    console.print(kept_table(report.data), crop=False)
    console.print(result_table(report.data), crop=False)
    if (tasks := tasks_table(report.data)) is not None:
        console.print(tasks, crop=False)
    for name in ("dense", "small"):
        if sample := models_of(report.data)[name].get("sample"):
            say(Text.assemble((name, "bold"), f" writes: {sample!r}"), console)
    say(f"report: {folder / 'report.html'}", console)
    for row in (row for row in report.data["budgets"] if not row["settled"]):
        expected, target = (number(row.get(which), form) for which, form in (("expected", ".2f"), ("target", "g")))
        message = f"not settled: {row['pass']}: {row['name']} expected {expected}, target {target}; give it more steps"
        say(message, Console(stderr=True), "yellow")


@contextmanager
def reporting(as_json: bool, doing: str, folder: Path | None = None) -> Iterator[None]:
    """Make whatever goes wrong an error to tell of, and with --json a document on stdout.

    Args:
        doing: what to say was being done when something goes wrong that nobody foresaw.
        folder: OUT of a run; the traceback goes there, too.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        told = explained(error, doing, folder if folder is not None and folder.is_dir() else None)
        if as_json:
            print_failure(told, folder)
        raise told from told.__cause__
