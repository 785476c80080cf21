"""What commands do once their arguments are read: run a graph under signals, and show or print what came out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from sprunec.errors import Diagnostic, InputError, disk_words
from sprunec.interrupts import Interrupts
from sprunec.show.console import Progress
from sprunec.unexpected import explained


def execute_graph(
    graph: Any, folder: Path, progress: Progress, stop: Interrupts, team: Any = None, as_json: bool = False
) -> Any:
    from sprunec.graph.execute import execute
    from sprunec.graph.report import mark_interrupted
    from sprunec.show.page import write_html

    def tell() -> None:
        progress.message(f"interrupted; what is done is kept: run the same command again to continue in {folder}")

    def abandon() -> None:
        mark_interrupted(folder)
        tell()
        if as_json:
            _print_interrupted(folder)

    stop.abandon = abandon
    try:
        report = execute(graph, folder, progress, stop, team)
    except BaseException as error:
        stop.leave()  # what is left to do is short
        if isinstance(error, KeyboardInterrupt):
            tell()
        with suppress(Exception):  # what stopped the run is the error to tell of
            write_html(folder)
        raise
    finally:
        progress.close()
    write_html(folder)
    return report


@contextmanager
def reporting(as_json: bool, doing: str, folder: Path | None = None) -> Iterator[None]:
    """Whatever goes wrong becomes an error to tell of, and with --json a document on stdout.

    The document is the run's own report where that is in `folder`, else the findings.

    Args:
        doing: what to say was being done when something goes wrong that nobody foresaw.
        folder: OUT of a run; the traceback goes there, too.
    """
    try:
        yield
    except Exception as error:
        told = explained(error, doing, folder if folder is not None and folder.is_dir() else None)
        if as_json:
            _print_failure(told, folder)
        raise told from told.__cause__
    except KeyboardInterrupt:
        if as_json:
            _print_interrupted(folder)
        raise


def _print_failure(error: BaseException, folder: Path | None) -> None:
    words = disk_words(error) if isinstance(error, OSError) else str(error)
    if isinstance(error, InputError):
        print_json(diagnostics_document(error.diagnostics))
    elif not _print_report(folder, {"error": words}):
        print_json(diagnostics_document([Diagnostic("failed", words)]))


def _print_interrupted(folder: Path | None) -> None:
    if not _print_report(folder, {"status": "interrupted"}):
        print_json(diagnostics_document([Diagnostic("interrupted", "interrupted", "run the same command again")]))


def _print_report(folder: Path | None, wanted: Mapping[str, str]) -> bool:
    """Whether there is one, and it tells of what is to be told, and not of another run in this folder."""
    try:
        text = (folder / "report.json").read_text(encoding="utf-8") if folder is not None else "{}"
        found = json.loads(text)
        fits = all(found.get(key) == value for key, value in wanted.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False
    if fits:
        typer.echo(text)
    return fits


def show_graph(graph: Any, folder: Path, as_json: bool, costs: Sequence[dict[str, Any]]) -> None:
    from sprunec.graph.store import Store
    from sprunec.show.tables import graph_table

    store = Store(folder / "store")
    document = graph.document({node.name: store.has(node) for node in graph.nodes}) | {"training": list(costs)}
    if as_json:
        print_json(document)
    else:
        Console().print(graph_table(document), crop=False)


def show_report(report: Any, folder: Path, as_json: bool) -> None:
    from sprunec.show.numbers import number
    from sprunec.show.tables import kept_table, result_table

    if as_json:
        print_json(report.data)
        return
    console = Console()
    if all(entry["cached"] for entry in report.data["passes"]):
        console.print("every pass was done before; nothing to do", highlight=False)
    console.print(kept_table(report.data), crop=False)
    console.print(result_table(report.data), crop=False)
    for name in ("dense", "small"):
        sample = (report.data["models"].get(name) or {}).get("sample")
        if sample:
            console.print(f"[bold]{name}[/bold] writes: ", end="")
            console.print(repr(sample), markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {folder / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    for row in report.data["budgets"]:
        if not row["settled"]:
            expected, target = (number(row.get(which), form) for which, form in (("expected", ".2f"), ("target", "g")))
            words = (
                f"not settled: {row['pass']}: {row['name']} expected {expected}, target {target}; give it more steps"
            )
            Console(stderr=True).print(Text(words, "yellow"), highlight=False, soft_wrap=True)


def diagnostics_document(found: Sequence[Diagnostic]) -> dict[str, Any]:
    valid = not any(finding.severity == "error" for finding in found)
    return {"valid": valid, "diagnostics": [finding.as_dict() for finding in found]}


def print_json(document: Any) -> None:
    from sprunec.graph.store import strict_json

    typer.echo(strict_json(document))
