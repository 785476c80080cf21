"""What commands do once their arguments are read: run a graph under signals, and show or print what came out."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from sprunec.errors import Diagnostic, InputError
from sprunec.show.console import Progress


def execute_graph(graph: Any, folder: Path, progress: Progress, team: Any = None) -> Any:
    from sprunec.graph.execute import execute
    from sprunec.show.report import write_html

    try:
        with interrupts(progress.message) as stop:
            report = execute(graph, folder, progress, stop, team)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            progress.message(f"interrupted; what is done is kept: run the same command again to continue in {folder}")
        with suppress(OSError, ValueError):  # what stopped the run is the error to tell of
            write_html(folder)
        raise
    finally:
        progress.close()
    write_html(folder)
    return report


@contextmanager
def document_on_error(as_json: bool, folder: Path | None = None) -> Iterator[None]:
    """With --json stdout gets a document whatever happens: the findings about bad input, else the run's own report."""
    try:
        yield
    except InputError as error:
        if as_json:
            print_json(diagnostics_document(error.diagnostics))
        raise
    except BaseException:
        if as_json and folder is not None and (folder / "report.json").is_file():
            typer.echo((folder / "report.json").read_text(encoding="utf-8"))
        raise


@contextmanager
def interrupts(tell: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM: the first lets the step or pass in hand end, the second stops at once."""
    asked: list[int] = []

    def note(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        tell("stopping after this step, or after this pass if it has none; once more stops at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    from sprunec.show.tables import kept_table, result_table
    from sprunec.show.words import number

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
