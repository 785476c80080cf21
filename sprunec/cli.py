"""The command line: parse, call, show, exit. Results go to stdout, progress and diagnostics to stderr.

Exit codes: 0 done · 1 a pass failed or the comparison did · 2 usage · 3 invalid plan or input ·
4 emitted, but a mask had not settled · 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sprunec.errors import Diagnostic, InputError, SprunecError
from sprunec.show.console import Progress, print_diagnostics

app = typer.Typer(
    name="sprunec",
    help="A pruning compiler for language models: a plan goes in, a smaller model that computes the same comes out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
INTERRUPTED = 130
TARGET_MISSED = 4


@app.command()
def validate(
    plans: Annotated[list[Path], typer.Argument(help="Plan files.", show_default=False)],
    strict: Annotated[bool, typer.Option(help="A missing checkpoint, data or mask file is an error.")] = False,
    as_json: Json = False,
) -> None:
    """Check plans: all errors at once, with file, line, column, what is wrong and what to write instead."""
    from sprunec.plan.plan import check_plan

    found = [finding for path in plans for finding in check_plan(path, strict=strict)[1]]
    valid = not any(finding.severity == "error" for finding in found)
    if as_json:
        _print_json(_diagnostics_document(found))
    else:
        print_diagnostics(found)
        if valid:
            Console().print(f"{len(plans)} valid plan{'s' * (len(plans) > 1)}", highlight=False)
    raise typer.Exit(0 if valid else InputError.exit_code)


@app.command()
def run(
    plan: Annotated[Path, typer.Argument(help="A plan file.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Where the run lives; run again there to continue.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the graph, sizes and cost; do nothing.")] = False,
    strict: Annotated[bool, typer.Option(help="With --dry-run: a missing file is an error, as in a run.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
    as_json: Json = False,
) -> None:
    """Run a plan; what is already done is not done again."""
    from sprunec.plan.plan import check_plan

    checked, found = check_plan(plan, strict=strict or not dry_run)
    if checked is None:
        with _document_on_error(as_json):
            raise InputError(*found)
    print_diagnostics(found)
    from sprunec.graph.lower import lower

    graph = lower(checked)
    folder = out or Path("runs") / checked.name
    if dry_run:
        _show_graph(graph, folder, as_json)
        return
    with _document_on_error(as_json, folder):
        report = _execute(graph, folder, Progress(quiet=quiet))
    _show_report(report, folder, as_json)
    raise typer.Exit(0 if report.status == "done" else TARGET_MISSED)


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="A model config, a checkpoint, or a directory.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Show what is in a model, what can be cut, and what each cut would save."""
    from sprunec.rewrite.inspect import inspect_model

    with _document_on_error(as_json):
        document = inspect_model(model)
    if as_json:
        _print_json(document)
    else:
        from sprunec.show.tables import inspect_table

        Console().print(inspect_table(document))


def _execute(graph: Any, folder: Path, progress: Progress) -> Any:
    from sprunec.graph.execute import execute
    from sprunec.show.report import write_html

    try:
        with _interrupts(progress) as stop:
            return execute(graph, folder, progress, stop)
    except KeyboardInterrupt:
        progress.message(f"interrupted; what is done is kept: run the same command again to continue in {folder}")
        raise
    finally:
        progress.close()
        if (folder / "report.json").is_file():
            write_html(folder)


@contextmanager
def _document_on_error(as_json: bool, folder: Path | None = None) -> Iterator[None]:
    """With --json stdout gets a document whatever happens: the findings about bad input, else the run's own report."""
    try:
        yield
    except InputError as error:
        if as_json:
            _print_json(_diagnostics_document(error.diagnostics))
        raise
    except BaseException:
        if as_json and folder is not None and (folder / "report.json").is_file():
            typer.echo((folder / "report.json").read_text(encoding="utf-8"))
        raise


@contextmanager
def _interrupts(progress: Progress) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM: the first lets the step or pass in hand end, the second stops at once."""
    asked: list[int] = []

    def note(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        progress.message("stopping after this step, or after this pass if it has none; once more stops at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_graph(graph: Any, folder: Path, as_json: bool) -> None:
    from sprunec.graph.store import Store
    from sprunec.show.tables import graph_table

    store = Store(folder / "store")
    document = graph.document({node.name: store.has(node) for node in graph.nodes})
    if as_json:
        _print_json(document)
    else:
        Console().print(graph_table(document))


def _show_report(report: Any, folder: Path, as_json: bool) -> None:
    from sprunec.show.tables import kept_table, result_table

    if as_json:
        _print_json(report.data)
        return
    console = Console()
    if all(entry["cached"] for entry in report.data["passes"]):
        console.print("every pass was done before; nothing to do", highlight=False)
    console.print(kept_table(report.data))
    console.print(result_table(report.data))
    for name in ("dense", "small"):
        sample = (report.data["models"].get(name) or {}).get("sample")
        if sample:
            console.print(f"[bold]{name}[/bold] writes: ", end="")
            console.print(repr(sample), markup=False, highlight=False)
    console.print(f"report: {folder / 'report.html'}", markup=False, highlight=False)
    for row in report.data["budgets"]:
        if not row["settled"]:
            words = f"{row['pass']}: {row['name']} expected {row['expected']:.2f}, target {row['target']:g}"
            Console(stderr=True).print(f"not settled: {words}; give it more steps", style="yellow", highlight=False)


def _diagnostics_document(found: Sequence[Diagnostic]) -> dict[str, Any]:
    valid = not any(finding.severity == "error" for finding in found)
    return {"valid": valid, "diagnostics": [finding.as_dict() for finding in found]}


def _print_json(document: Any) -> None:
    from sprunec.graph.store import strict_json

    typer.echo(strict_json(document))


def main() -> None:
    """Run the command; every error a user can cause becomes one message and an exit code."""
    try:
        app()
    except InputError as error:
        print_diagnostics(error.diagnostics)
        sys.exit(error.exit_code)
    except SprunecError as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        Console(stderr=True).print(f"[red]error:[/red] {place}{error.strerror or error}", highlight=False)
        sys.exit(SprunecError.exit_code)
